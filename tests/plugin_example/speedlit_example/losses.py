"""A loss: a pure function of tensors."""

from __future__ import annotations

import torch


def margin_loss(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """Softplus of the negative margin, one value per pair."""
    return torch.nn.functional.softplus(-beta * (chosen - rejected))
