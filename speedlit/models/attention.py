"""Attention for training on a CPU, where torch's fused kernel is slow in bfloat16.

Here each head's scores are a few large batched products (docs/benchmarks.md has the times). Queries go in blocks, so that a
causal block sees only the keys up to its end.
It is registered with transformers as one more attention implementation, which any model that asks for one can use.
"""

from __future__ import annotations

from typing import Any

import torch

NAME = "speedlit_cpu"
BLOCK = 192  # queries at a time
LONGEST = 1536  # the probabilities are kept for the backward pass; beyond this length they would fill the memory


class _Attention(torch.autograd.Function):
    """softmax(q k' + mask) v over (N, T, D); rows are batch times heads. In 16 bits a softmax still works in 32 inside."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, causal: bool) -> torch.Tensor:
        out, kept = torch.empty_like(q), []
        for start, end, seen in _blocks(q.shape[1], k.shape[1], causal):
            scores = torch.bmm(q[:, start:end], k[:, :seen].transpose(1, 2))
            if causal and mask is None:
                scores[:, :, start:].add_(_corner(end - start, q))
            if mask is not None:
                scores.view(len(mask), -1, end - start, seen).add_(mask[:, :, start:end, :seen])
            weights = torch.softmax(scores, -1)
            out[:, start:end] = torch.bmm(weights, v[:, :seen])
            if any(ctx.needs_input_grad):
                kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.causal = causal
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        blocks = _blocks(q.shape[1], k.shape[1], ctx.causal)
        dq = torch.empty_like(q)
        dk = dv = torch.empty(0)
        for number in reversed(range(len(blocks))):  # the last block sees all keys, so that the first sum is the whole
            (start, end, seen), weights = blocks[number], kept[number]
            part = grad[:, start:end]
            inner = torch.bmm(part, v[:, :seen].transpose(1, 2))
            scores = torch._softmax_backward_data(inner, weights, -1, weights.dtype)
            dq[:, start:end] = torch.bmm(scores, k[:, :seen])
            to_k, to_v = torch.bmm(scores.transpose(1, 2), q[:, start:end]), torch.bmm(weights.transpose(1, 2), part)
            if number == len(blocks) - 1:
                dk, dv = to_k, to_v
            else:
                dk[:, :seen] += to_k
                dv[:, :seen] += to_v
        return dq, dk, dv, None, None


def _blocks(queries: int, keys: int, causal: bool) -> list[tuple[int, int, int]]:
    """First query, end, and how many keys they see."""
    count = max(1, round(queries / BLOCK))
    size = -(-queries // count)
    return [(start, min(start + size, queries), min(start + size, queries) if causal else keys) for start in range(0, queries, size)]


def _corner(size: int, like: torch.Tensor) -> torch.Tensor:
    return like.new_full((size, size), float("-inf")).triu_(1)


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None, causal: bool = False, scale: float | None = None
) -> torch.Tensor:
    """Attention over (B, H, T, D); ``mask`` is boolean (True: seen) or is added to the scores, (B or 1, 1 or H, T, T).

    With ``causal`` nothing sees what comes later, which a mask must say as well: only what lies before is computed.
    """
    batch, heads, length, width = q.shape
    if mask is not None:
        lowest = torch.finfo(q.dtype).min
        mask = q.new_zeros(mask.shape).masked_fill_(~mask, lowest) if mask.dtype == torch.bool else mask.clamp(min=lowest).to(q.dtype)
        mask = mask.expand(batch, -1, -1, -1)
    q = q * (width**-0.5 if scale is None else scale)
    out: torch.Tensor = _Attention.apply(*(x.reshape(batch * heads, -1, width) for x in (q, k, v)), mask, causal)
    return out.view(batch, heads, length, width)


def interface(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None, **others: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """What transformers calls; all but whole rows in bfloat16 on a CPU is handed over to its own ``sdpa``."""
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    length = query.shape[2]
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    plain = (
        query.device.type != "cpu" or dtype != torch.bfloat16 or dropout or length != key.shape[2] or not 1 < length <= LONGEST
        or any(value is not None for name, value in others.items() if name in ("position_bias", "softcap", "cache", "s_aux"))
    )  # fmt: skip
    if plain:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **others)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    groups = getattr(module, "num_key_value_groups", 1)
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    if attention_mask is not None:  # then the layer's word says nothing: a decoder that attends both ways is told by its config alone
        causal = causal and getattr(getattr(module, "config", None), "is_causal", None) is not False
    out = attend(query, repeat_kv(key, groups), repeat_kv(value, groups), attention_mask, bool(causal), scaling)
    return out.transpose(1, 2).contiguous(), None


def register() -> None:
    """Make it known to transformers under ``NAME``, with the masks of ``sdpa``."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, interface)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
