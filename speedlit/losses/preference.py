"""Preference losses: pure functions of log-ratios, one value per pair.

``chosen`` and ``rejected`` are log pi(y|x) - log pi_ref(y|x) of each pair, summed over the completion's tokens
(averaged for ``ipo``, as its authors do).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import logsigmoid, relu

Loss = Callable[[torch.Tensor, torch.Tensor, float, float], torch.Tensor]


def sigmoid(chosen: torch.Tensor, rejected: torch.Tensor, beta: float, label_smoothing: float = 0.0) -> torch.Tensor:
    """DPO (arXiv 2305.18290); with label smoothing, conservative DPO."""
    logits = beta * (chosen - rejected)
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


def robust(chosen: torch.Tensor, rejected: torch.Tensor, beta: float, label_smoothing: float = 0.0) -> torch.Tensor:
    """Unbiased under a share ``label_smoothing`` of flipped pairs (arXiv 2403.00409)."""
    logits = beta * (chosen - rejected)
    return ((label_smoothing * logsigmoid(-logits)) - (1 - label_smoothing) * logsigmoid(logits)) / (1 - 2 * label_smoothing)


def hinge(chosen: torch.Tensor, rejected: torch.Tensor, beta: float, label_smoothing: float = 0.0) -> torch.Tensor:
    """SLiC's hinge on the same margin (arXiv 2305.10425)."""
    return relu(1 - beta * (chosen - rejected))


def ipo(chosen: torch.Tensor, rejected: torch.Tensor, beta: float, label_smoothing: float = 0.0) -> torch.Tensor:
    """IPO (arXiv 2310.12036) over log-ratios averaged per token."""
    return (chosen - rejected - 1 / (2 * beta)) ** 2


LOSSES: dict[str, Loss] = {"sigmoid": sigmoid, "robust": robust, "hinge": hinge, "ipo": ipo}
AVERAGED = ("ipo",)  # losses over the mean log-ratio of a completion's tokens
