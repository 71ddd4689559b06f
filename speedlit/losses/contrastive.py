"""Contrastive losses: pure functions of vectors and of what is known about the texts behind them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy


class _Gather(torch.autograd.Function):
    """All ranks' rows, in the order of ranks. The gradient is the sum over ranks of what each of them did with our rows."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
        ctx.count = len(rows)
        out = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(out, rows.contiguous())
        return torch.cat(out)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank() * ctx.count :][: ctx.count]


def gather(rows: torch.Tensor) -> torch.Tensor:
    """Rows of all ranks, each rank with equally many; itself where there is one process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    gathered: torch.Tensor = _Gather.apply(rows)
    return gathered


def info_nce(queries: torch.Tensor, candidates: torch.Tensor, positive: torch.Tensor, temperature: torch.Tensor | float, allowed: torch.Tensor) -> torch.Tensor:
    """Cross entropy of each query's positive among the allowed candidates, one value per query.

    Args:
        queries: (B, D), normalised.
        candidates: (N, D), normalised.
        positive: (B,), column of each query's positive.
        temperature: divides the similarities.
        allowed: (B, N) bool; the positive's own column counts always.
    """
    scores = queries @ candidates.T / temperature
    own = torch.zeros_like(allowed).scatter_(1, positive[:, None], True)
    return cross_entropy(scores.float().masked_fill(~(allowed | own), float("-inf")), positive, reduction="none")


def allowed_documents(
    texts: torch.Tensor, asked: torch.Tensor, query_text: torch.Tensor, own_texts: torch.Tensor, own_asked: torch.Tensor,
    first: int, in_batch: bool, mask_equal: bool,
) -> torch.Tensor:  # fmt: skip
    """Which documents may be negatives of which query.

    Args:
        texts: hashes of all documents (N, G): a query's positive, then its hard negatives; 0: an empty slot.
        asked: hash of every query with its instruction (N,).
        query_text: of the own queries, without instruction (B,).
        own_texts: document hashes of the own queries (B, G).
        own_asked: hash of the own queries with instruction (B,).
        first: number of the first own query among the N.
        in_batch: other queries' documents count too.
        mask_equal: a document is no negative if it equals the positive or the query, nor if it is the positive of the same query.

    Returns:
        (B, N * G) bool.
    """
    flat = texts.flatten()
    allowed = (flat != 0).expand(len(own_texts), -1).clone()
    owner = torch.arange(len(texts), device=texts.device).repeat_interleave(texts.shape[1])
    if not in_batch:
        allowed &= owner == torch.arange(first, first + len(own_texts), device=texts.device)[:, None]
    if mask_equal:
        allowed &= (flat != own_texts[:, :1]) & (flat != query_text[:, None])
        is_positive = torch.arange(flat.numel(), device=texts.device) % texts.shape[1] == 0
        allowed &= ~(is_positive & (asked[owner] == own_asked[:, None]))
    return allowed


def allowed_queries(texts: torch.Tensor, asked: torch.Tensor, own_texts: torch.Tensor, own_asked: torch.Tensor, mask_equal: bool) -> torch.Tensor:
    """Which queries may be negatives of which positive document (symmetric losses): (B, N) bool."""
    allowed = torch.ones(len(own_texts), len(asked), dtype=torch.bool, device=texts.device)
    if mask_equal:
        allowed &= (asked != own_asked[:, None]) & (texts[:, 0] != own_texts[:, :1])
    return allowed
