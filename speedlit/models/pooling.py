"""From hidden states to one vector per text. No pooling depends on the side of the padding."""

from __future__ import annotations

import torch

from speedlit.errors import UsageError


def pool(hidden: torch.Tensor, mask: torch.Tensor, how: str) -> torch.Tensor:
    """One vector per row.

    Args:
        hidden: last hidden states (B, T, D).
        mask: 1 for tokens, 0 for padding (B, T).
        how: ``last`` token, ``mean`` of all tokens, ``weighted_mean`` (the i-th token weighs i), ``cls`` (the first token).

    Returns:
        (B, D).

    Raises:
        UsageError: an unknown pooling.
    """
    places = picked(mask, how)
    if places is not None:
        return hidden[places]
    if how == "mean":
        return _average(hidden, mask)
    if how == "weighted_mean":
        return _average(hidden, mask * mask.cumsum(1))
    raise UsageError(f"unknown pooling {how!r}; choose last, mean, weighted_mean or cls")


def picked(mask: torch.Tensor, how: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Row and place of the one state that each text's vector is; None where it is made of several."""
    if how not in ("last", "cls"):
        return None
    weights = mask * torch.arange(1, mask.shape[1] + 1, device=mask.device) if how == "last" else mask.to(torch.int)
    return torch.arange(mask.shape[0], device=mask.device), weights.argmax(1)  # len(mask) would be a constant in an exported graph


def _average(hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    weights = weights.to(hidden.dtype if hidden.dtype == torch.float32 else torch.float32)
    return torch.einsum("btd,bt->bd", hidden.to(weights.dtype), weights / weights.sum(1, keepdim=True))


def embed(hidden: torch.Tensor, mask: torch.Tensor, how: str, normalize: bool) -> torch.Tensor:
    """Pooled and, where asked, normalised vectors (B, D) in float32."""
    vectors = pool(hidden, mask, how).float()
    return torch.nn.functional.normalize(vectors, dim=-1) if normalize else vectors
