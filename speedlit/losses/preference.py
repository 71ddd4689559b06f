"""Preference losses: pure functions of what each pair's completions got, one value per pair.

``chosen`` and ``rejected`` are log pi(y|x) - log pi_ref(y|x) of each pair, summed over the completion's tokens. What reads
something else says so with ``@reads``: means per token, or log pi(y|x) alone, for which no reference is ever computed.
Any function of this form may be named in a config by its dotted path; what it takes after ``beta`` can be set there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.nn.functional import logsigmoid, relu

Loss = Callable[..., torch.Tensor]
Marked = TypeVar("Marked", bound=Loss)


def reads(averaged: bool = False, reference: bool = True, nll_weight: float = 0.0) -> Callable[[Marked], Marked]:
    """What a loss is given, as a decorator.

    Args:
        averaged: means over the completion's tokens in place of sums.
        reference: log-ratios to the reference; False: log-probs of the policy alone.
        nll_weight: weight of the chosen completions' NLL per token that belongs to the method, where a config sets none.
    """

    def mark(loss: Marked) -> Marked:
        vars(loss).update(averaged=averaged, reference=reference, nll_weight=nll_weight)
        return loss

    return mark


def sigmoid(chosen: torch.Tensor, rejected: torch.Tensor, beta: float, label_smoothing: float = 0.0) -> torch.Tensor:
    """DPO (arXiv 2305.18290); with label smoothing, conservative DPO."""
    logits = beta * (chosen - rejected)
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


def robust(chosen: torch.Tensor, rejected: torch.Tensor, beta: float, label_smoothing: float = 0.0) -> torch.Tensor:
    """Unbiased under a share ``label_smoothing`` of flipped pairs (arXiv 2403.00409)."""
    logits = beta * (chosen - rejected)
    return ((label_smoothing * logsigmoid(-logits)) - (1 - label_smoothing) * logsigmoid(logits)) / (1 - 2 * label_smoothing)


def hinge(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """SLiC's hinge on the same margin (arXiv 2305.10425)."""
    return relu(1 - beta * (chosen - rejected))


@reads(averaged=True)
def ipo(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """IPO (arXiv 2310.12036) over log-ratios averaged per token, as its authors do."""
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def apo_zero(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """APO-zero (arXiv 2408.06266): chosen up, rejected down; for answers better than the model's own."""
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """APO-down (arXiv 2408.06266): both down, rejected more; for answers worse than the model's own."""
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


def sppo(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """SPPO (arXiv 2405.00675) with hard preferences: the winner wins with probability 1."""
    return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


def discopop(chosen: torch.Tensor, rejected: torch.Tensor, beta: float, tau: float = 0.05) -> torch.Tensor:
    """DiscoPOP (arXiv 2406.08414): logistic where the margin is negative, exponential where it is positive; ``tau`` blends."""
    logits = beta * (chosen - rejected)
    share = torch.sigmoid(logits / tau)
    return -(1 - share) * logsigmoid(logits) + share * torch.exp(-logits)


def exo(chosen: torch.Tensor, rejected: torch.Tensor, beta: float, label_smoothing: float = 1e-3) -> torch.Tensor:
    """EXO on pairs (arXiv 2402.00856): the reverse KL from the policy's preference to (1 - s, s), s = label_smoothing > 0."""
    logits = beta * (chosen - rejected)
    won = torch.sigmoid(logits) * (logsigmoid(logits) - math.log1p(-label_smoothing))
    return won + torch.sigmoid(-logits) * (logsigmoid(-logits) - math.log(label_smoothing))


def nca(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """NCA on pairs (arXiv 2402.05369): optimises each reward by itself, so that the chosen one's doesn't fall."""
    return -logsigmoid(beta * chosen) - 0.5 * logsigmoid(-beta * chosen) - 0.5 * logsigmoid(-beta * rejected)


@reads(averaged=True, reference=False)
def simpo(chosen: torch.Tensor, rejected: torch.Tensor, beta: float, gamma: float = 0.5, label_smoothing: float = 0.0) -> torch.Tensor:
    """SimPO (arXiv 2405.14734): mean log-probs without reference, ``gamma`` apart; its authors take beta 2 and more."""
    logits = beta * (chosen - rejected) - gamma
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


@reads(averaged=True, reference=False, nll_weight=1.0)
def orpo(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """ORPO (arXiv 2403.07691): the log odds ratio of mean log-probs without reference, beside the NLL."""
    odds = chosen - rejected - _log1mexp(chosen) + _log1mexp(rejected)
    return -beta * logsigmoid(odds)


def _log1mexp(value: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(value)) of values below 0, exact near 0 and far from it."""
    near = value > -math.log(2)
    safe = torch.where(near, value, -1.0), torch.where(near, -1.0, value)  # neither branch may put a NaN into the other's gradient
    return torch.where(near, torch.log(-torch.expm1(safe[0])), torch.log1p(-torch.exp(safe[1])))


_NAMED: tuple[Any, ...] = (sigmoid, robust, hinge, ipo, apo_zero, apo_down, simpo, orpo, sppo, discopop, exo, nca)
LOSSES: dict[str, Loss] = {loss.__name__: loss for loss in _NAMED}
