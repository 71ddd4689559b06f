"""A preference loss of one's own: any function of (chosen, rejected, beta, ...) that gives one number per pair."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid


def offset(chosen: torch.Tensor, rejected: torch.Tensor, beta: float, offset: float = 0.0) -> torch.Tensor:
    """DPO that asks for a margin: the chosen answer's reward must be higher by ``offset``.

    Args:
        chosen: log-ratio of policy and reference, summed over the chosen answer's tokens, one per pair.
        rejected: the same of the rejected answers.
        beta: makes a reward of a log-ratio.
        offset: the margin; 0 is plain DPO. A config sets it with ``loss_args``.
    """
    return -logsigmoid(beta * (chosen - rejected) - offset)
