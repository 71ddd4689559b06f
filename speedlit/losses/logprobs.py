"""Log-probabilities of target tokens. The one path from hidden states to log-probs: SFT and all preference losses use it."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from speedlit.labels import IGNORE

DIRECT = 1 << 25  # logits up to this many are made at once; above, they are made in chunks and made again in the backward pass


def token_logps(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, bias: torch.Tensor | None = None, chunk: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of the labels that count. Logits are made only where there is a target.

    Args:
        hidden: last hidden states (B, T, D); position t predicts label t + 1.
        weight: output head (V, D).
        labels: (B, T), -100 where nothing is to be predicted.
        bias: of the head, or None.
        chunk: targets per chunk of logits; None: one chunk for small vocabularies, else chosen by memory.

    Returns:
        log-probs (N,) in float32, row by row, and the row of each (N,).
    """
    rows, places = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
    states, targets = hidden[rows, places], labels[rows, places + 1]
    size = chunk or (len(states) if len(states) * len(weight) <= DIRECT else max(1, DIRECT // (4 * len(weight))))
    if len(states) <= size:
        return _logps(states, weight, targets, bias), rows
    parts = [
        checkpoint(_logps, states[start : start + size], weight, targets[start : start + size], bias, use_reentrant=False)
        for start in range(0, len(states), size)
    ]
    return torch.cat(parts), rows


def _logps(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    logits = torch.nn.functional.linear(states, weight.to(states.dtype), bias)
    return -cross_entropy(logits.float(), targets, reduction="none")


def row_sums(values: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """Sum of the values of each row: (count,)."""
    return torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, rows, values)
