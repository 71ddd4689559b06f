"""Log-probabilities of target tokens. The one path from hidden states to log-probs: SFT and all preference losses use it."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import linear

from speedlit.labels import IGNORE

AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 25}  # logits in one go: on a CPU those that its cache holds
KEPT = 1 << 24  # logits up to this many are kept for the backward pass; of more, none is, and it makes them again


def token_logps(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, bias: torch.Tensor | None = None, chunk: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of the labels that count. Logits are made only where there is a target.

    Args:
        hidden: last hidden states (B, T, D); position t predicts label t + 1.
        weight: output head (V, D).
        labels: (B, T), -100 where nothing is to be predicted.
        bias: of the head, or None.
        chunk: targets per chunk of logits, none of which is kept; None: chosen by size.

    Returns:
        log-probs (N,) in float32, row by row, and the row of each (N,).
    """
    rows, places = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
    states, targets = hidden[rows, places], labels[rows, places + 1]
    kind = states.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
    size = chunk or max(1, AT_ONCE.get(kind, AT_ONCE["cuda"]) // len(weight))
    keep = chunk is None and len(states) * len(weight) <= KEPT
    found: torch.Tensor = _LogProbs.apply(states.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), targets, size, keep)
    return found, rows


class _LogProbs(torch.autograd.Function):
    """Log-softmax of states times head, at the targets; never more than ``size`` rows of logits in float32."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, size: int, keep: bool
    ) -> torch.Tensor:
        found = torch.empty(len(states), device=states.device)
        norms, kept = torch.empty_like(found), []
        for start in range(0, len(states), size):
            part = slice(start, start + size)
            logits = linear(states[part], weight, bias)
            if keep and any(ctx.needs_input_grad):
                kept.append(logits)
            logits = logits.float()
            norms[part] = logits.logsumexp(-1)
            found[part] = logits.gather(1, targets[part, None])[:, 0] - norms[part]
        ctx.save_for_backward(states, weight, bias, targets, norms, *kept)
        ctx.size = size
        return found

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight, bias, targets, norms, *kept = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        to_states = torch.empty_like(states) if wanted[0] else None
        to_weight = torch.zeros(weight.shape, device=weight.device) if wanted[1] else None
        to_bias = torch.zeros(bias.shape, device=bias.device) if wanted[2] else None
        for number, start in enumerate(range(0, len(states), ctx.size)):
            part = slice(start, start + ctx.size)
            logits = (kept[number] if kept else linear(states[part], weight, bias)).float()
            away = (logits - norms[part, None]).exp_().mul_(-grad[part, None])
            away.scatter_add_(1, targets[part, None], grad[part, None])
            away = away.to(states.dtype)
            if to_states is not None:
                to_states[part] = away @ weight
            if to_weight is not None:
                to_weight += away.T @ states[part]
            if to_bias is not None:
                to_bias += away.sum(0)
        return to_states, _cast(to_weight, states.dtype), _cast(to_bias, states.dtype), None, None, None


def _cast(sums: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if sums is None else sums.to(dtype)


def row_sums(values: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """Sum of the values of each row: (count,)."""
    return torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, rows, values)
