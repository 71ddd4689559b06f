"""BERT encoders on a CPU, for inference: the same sums with weights packed once for the matrix products.

Query, key and value are one product; the activation and the residual are added inside the products; a batch without padding
has no mask. Attention is made of batched products where they are faster than torch's fused kernel: in float32 for short texts, in
bfloat16 for long ones. (Short ones would gain there too, but their rounding moved the score of a clustering of titles by 0.4 points.)
Only for weights that do not change any more: the packed copies would not follow.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch.nn import functional

TOKENS = 1024  # about how many are packed for
SHORT = 64  # tokens of a text up to which a softmax costs more than its exponentials
STEEP = 60.0  # scores up to which exponentials need no maximum taken off, with room for sums
ROOM = 1 << 22  # scores at a time


def speed_up_bert(model: Any) -> int:
    """Replace the forward pass of the BERT networks inside ``model``, in place; returns of how many."""
    count = 0
    for part in model.modules():
        if type(part).__module__ == "transformers.models.bert.modeling_bert" and type(part).__name__ == "BertModel" and _plain(part):
            part.packed = [_Layer(layer) for layer in part.encoder.layer]
            part.forward = types.MethodType(_forward, part)
            count += 1
    return count


def _plain(bert: Any) -> bool:
    """Whether this is an encoder as published, on a CPU, in a dtype that the products know."""
    config, weight = bert.config, next(bert.parameters())
    usual = not config.is_decoder and config.hidden_act == "gelu" and getattr(config, "position_embedding_type", None) in (None, "absolute")
    linear = all(type(part) is torch.nn.Linear for layer in bert.encoder.layer for part in (layer.attention.self.query, layer.output.dense))
    able = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return bool(usual and linear and able and weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16))


class _Layer:
    """One layer's weights, packed."""

    def __init__(self, layer: Any) -> None:
        attention = layer.attention
        own = [getattr(attention.self, name) for name in ("query", "key", "value")]
        self.qkv = _packed(torch.cat([part.weight for part in own])), torch.cat([part.bias for part in own]).detach()
        others = attention.output.dense, layer.intermediate.dense, layer.output.dense
        self.out, self.up, self.down = ((_packed(part.weight), part.bias.detach()) for part in others)
        self.norms = attention.output.LayerNorm, layer.output.LayerNorm
        self.heads = attention.self.num_attention_heads

    def __call__(self, x: torch.Tensor, shape: tuple[int, int], real: torch.Tensor | None) -> torch.Tensor:
        """(B * T, D) to the same."""
        linear = torch.ops.mkldnn._linear_pointwise
        attended = _attend(linear(x, *self.qkv, "none", [], "").view(*shape, 3, self.heads, -1), real)
        x = self.norms[0](linear.binary(attended, x, *self.out, "add"))
        inner = linear(x, *self.up, "gelu", [], "none")
        done: torch.Tensor = self.norms[1](linear.binary(inner, x, *self.down, "add"))
        return done


def _attend(qkv: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """Attention of (B, T, 3, H, D) to (B * T, H * D); ``real`` (B, T) says which tokens are no padding, None that all are."""
    rows, length, _, heads, width = qkv.shape
    qkv = qkv.permute(2, 0, 3, 1, 4)
    if length <= SHORT and qkv.dtype == torch.float32:
        out = _short(qkv, real)
    elif length > SHORT and qkv.dtype == torch.bfloat16:
        out = _long(qkv, real)
    else:
        q, k, v = qkv
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=None if real is None else real[:, None, None, :])
    return out.view(rows, heads, length, width).transpose(1, 2).reshape(rows * length, heads * width)


def _short(qkv: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """Softmax as exponentials and their sum, which a column of ones beside the values yields; padding has values and ones of 0."""
    _, rows, heads, length, width = qkv.shape
    q, k = (part.reshape(rows * heads, length, width) for part in qkv[:2])
    scores = torch.bmm(q.mul_(width**-0.5), k.transpose(1, 2))
    lowest, highest = scores.aminmax()
    if not -STEEP < float(lowest) <= float(highest) < STEEP:
        q, k = (part.view(rows, heads, length, width) for part in (q, k))  # of one text alone, q is a view that holds scaled queries now
        return functional.scaled_dot_product_attention(q, k, qkv[2], attn_mask=None if real is None else real[:, None, None, :], scale=1.0)
    values = qkv.new_empty(rows, heads, length, width + 1)
    values[..., :width] = qkv[2]
    values[..., width] = 1
    if real is not None:
        values *= real[:, None, :, None]
    sums = torch.bmm(scores.exp_(), values.view(rows * heads, length, width + 1))
    return sums[..., :width] / sums[..., width:]


def _long(qkv: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """Some texts at a time, whose scores and weights lie in one place: fresh memory of that size would cost more than the products."""
    _, rows, heads, length, width = qkv.shape
    q, k, v = qkv.reshape(3, rows, heads * length, width)
    q.mul_(width**-0.5)
    size = min(rows, max(1, ROOM // (heads * length * length)))
    room, out = qkv.new_empty(size * heads, length, length), qkv.new_empty(rows, heads * length, width)
    for start in range(0, rows, size):
        some = slice(start, start + size)
        left, right, values = (part[some].view(-1, length, width) for part in (q, k, v))
        scores = torch.bmm(left, right.transpose(1, 2), out=room[: len(left)])
        if real is not None:
            scores.view(-1, heads, length, length).masked_fill_(~real[some, None, None, :], float("-inf"))
        torch.softmax(scores, -1, out=scores)
        torch.bmm(scores, values, out=out[some].view(-1, length, width))
    return out


def _packed(weight: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), TOKENS)
    return found


def _forward(bert: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
    """What BertModel's forward returns, without its pooler, which no embedder of ours reads."""
    from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

    used = {name: value for name, value in kwargs.items() if name not in ("token_type_ids", "return_dict") and value not in (None, False)}
    if torch.is_grad_enabled() or bert.training or used:
        return type(bert).forward(bert, input_ids, attention_mask, **kwargs)
    x = bert.embeddings(input_ids=input_ids, token_type_ids=kwargs.get("token_type_ids"))
    real = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool()
    shape, flat = x.shape[:2], x.reshape(-1, x.shape[-1])
    for layer in bert.packed:
        flat = layer(flat, shape, real)
    return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=flat.view(*shape, -1))
