"""Contrastive losses: pure functions of vectors and of what is known about the texts behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import log_softmax, normalize

DIRECTIONS = ("query_to_doc", "doc_to_query", "query_to_query", "doc_to_doc")  # names as in sentence-transformers
Named = dict[str, torch.Tensor]


class _Gather(torch.autograd.Function):
    """All ranks' rows, in the order of ranks. The gradient is the sum over ranks of what each of them did with our rows."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, group: Any) -> torch.Tensor:  # type: ignore[no-untyped-def]
        ctx.count, ctx.group = len(rows), group
        out = [torch.empty_like(rows) for _ in range(dist.get_world_size(group))]
        dist.all_gather(out, rows.contiguous(), group)
        return torch.cat(out)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[no-untyped-def]
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient[dist.get_rank(ctx.group) * ctx.count :][: ctx.count], None


def gather(rows: torch.Tensor, group: Any = None) -> torch.Tensor:
    """Rows of all ranks of a group (None: of all ranks), each rank with equally many; itself where there is one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return rows
    gathered: torch.Tensor = _Gather.apply(rows, group)
    return gathered


def first_row(count: int, group: Any = None) -> int:
    """Where this rank's ``count`` rows begin among the gathered ones."""
    return dist.get_rank(group) * count if dist.is_available() and dist.is_initialized() else 0


def similarities(queries: torch.Tensor, documents: torch.Tensor, everywhere: tuple[torch.Tensor, torch.Tensor], directions: Sequence[str]) -> Named:
    """Products of this rank's vectors with all ranks', in float32 even under autocast: a temperature of 0.02 makes 50 of each rounding error.

    Args:
        queries: (B, D).
        documents: (B, G, D): each query's positive, then its hard negatives.
        everywhere: queries (N, D) and documents (N, G, D) of all ranks.
        directions: which of ``DIRECTIONS``.

    Returns:
        by direction (B, N * G) or (B, N); row i is of query i, or of its positive document.
    """
    all_queries, all_documents, positives = everywhere[0], everywhere[1].flatten(0, 1), documents[:, 0]
    sides = {
        "query_to_doc": (queries, all_documents), "doc_to_query": (positives, all_queries),
        "query_to_query": (queries, all_queries), "doc_to_doc": (positives, all_documents),
    }  # fmt: skip
    with torch.autocast(queries.device.type, enabled=False):
        return {name: sides[name][0].float() @ sides[name][1].float().T for name in directions}


def info_nce(scores: Named, allowed: Named, matched: Named, temperature: torch.Tensor | float, joint: bool = True) -> torch.Tensor:
    """Minus log share of each query's positive document among all candidates, one value per query.

    Args:
        scores: similarities by direction, ``query_to_doc`` among them.
        allowed: which of them count, the positive's own included.
        matched: column of each query's positive (B,), for the directions that have one.
        temperature: divides the similarities.
        joint: one softmax over the candidates of all directions; else one for each, and the mean of their losses.
    """
    positive = scores["query_to_doc"].gather(1, matched["query_to_doc"][:, None])[:, 0] / temperature
    logits = [(found / temperature).masked_fill(~allowed[name], float("-inf")) for name, found in scores.items()]
    if joint:
        return torch.logsumexp(torch.cat(logits, 1), 1) - positive
    return torch.stack([torch.logsumexp(one, 1) for one in logits]).mean(0) - positive


def without_false_negatives(scores: Named, allowed: Named, matched: Named, margin: float) -> Named:
    """``allowed`` without candidates that are nearer than the positive is, by more than ``margin``."""
    limit = scores["query_to_doc"].detach().gather(1, matched["query_to_doc"][:, None]) + margin
    near = {name: mask & (scores[name].detach() <= limit) for name, mask in allowed.items()}
    return {name: near[name].scatter(1, matched[name][:, None], True) if name in matched else near[name] for name in near}


def graded_kl(own: torch.Tensor, grades: torch.Tensor, temperature: torch.Tensor | float, grades_temperature: float = 1.0) -> torch.Tensor:
    """Kullback-Leibler divergence of each query's ranking of its own documents from the graded one; 0 where there are no grades.

    Args:
        own: similarities of a query with its documents (B, G).
        grades: what they should be ranked by (B, G), on any scale; nan: no document, or no grades.
        temperature: divides the similarities.
        grades_temperature: divides the grades.
    """
    known = ~grades.isnan()
    target = log_softmax((grades / grades_temperature).masked_fill(~known, -1e9), 1)
    found = log_softmax((own / temperature).masked_fill(~known, -1e9), 1)
    return ((target.exp() * (target - found)) * known).sum(1)


def margin_mse(own: torch.Tensor, grades: torch.Tensor) -> torch.Tensor:
    """Squared error of the distances between positive and each negative, against the graded distances; arguments as in :func:`graded_kl`."""
    known = ~grades.isnan()[:, 1:]
    error = ((own[:, :1] - own[:, 1:]) - (grades[:, :1] - grades[:, 1:])).masked_fill(~known, 0.0)
    return error.square().sum(1) / known.sum(1).clamp(min=1)


def shrink(vectors: torch.Tensor, size: int, unit: bool = True) -> torch.Tensor:
    """The first ``size`` dimensions, made unit vectors again where the whole ones are."""
    part = vectors[..., :size]
    return normalize(part, dim=-1) if unit and size < vectors.shape[-1] else part


def candidates(
    directions: Sequence[str], texts: torch.Tensor, asked: torch.Tensor, query_text: torch.Tensor, own_texts: torch.Tensor, own_asked: torch.Tensor,
    first: int, in_batch: bool, mask_equal: bool,
) -> tuple[Named, Named]:  # fmt: skip
    """What :func:`info_nce` calls allowed and matched; arguments as in :func:`allowed_documents`."""
    count, slots = own_texts.shape
    own = torch.arange(first, first + count, device=texts.device)
    mine = torch.arange(len(texts), device=texts.device) == own[:, None]
    documents = allowed_documents(texts, asked, query_text, own_texts, own_asked, first, in_batch, mask_equal)
    queries = allowed_queries(texts, asked, own_texts, own_asked, mask_equal)
    matched = {"query_to_doc": own * slots, "doc_to_query": own}
    allowed = {
        "query_to_doc": documents.scatter(1, matched["query_to_doc"][:, None], True), "doc_to_query": queries | mine,
        "query_to_query": queries & ~mine, "doc_to_doc": documents & ~mine.repeat_interleave(slots, 1),
    }  # fmt: skip
    return {name: allowed[name] for name in directions}, {name: matched[name] for name in directions if name in matched}


def allowed_documents(
    texts: torch.Tensor, asked: torch.Tensor, query_text: torch.Tensor, own_texts: torch.Tensor, own_asked: torch.Tensor,
    first: int, in_batch: bool, mask_equal: bool,
) -> torch.Tensor:  # fmt: skip
    """Which documents may be negatives of which query.

    Args:
        texts: hashes of all documents (N, G): a query's positive, then its hard negatives; 0: an empty slot.
        asked: hash of every query with its instruction (N,); 0: an empty place.
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
    """Which queries may be negatives of which query or of its positive document: (B, N) bool. An empty place, of hash 0, never is."""
    allowed = (asked != 0).expand(len(own_texts), -1).clone()
    if mask_equal:
        allowed &= (asked != own_asked[:, None]) & (texts[:, 0] != own_texts[:, :1])
    return allowed
