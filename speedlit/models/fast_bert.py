"""BERT encoders on a CPU, for inference: the same sums with weights packed once for the matrix products.

Query, key and value are one product; the activation and the residual are added inside the products; a batch without padding
has no mask. Only for weights that do not change any more: the packed copies would not follow.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch.nn import functional

TOKENS = 1024  # about how many are packed for


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

    def __call__(self, x: torch.Tensor, shape: tuple[int, int], mask: torch.Tensor | None) -> torch.Tensor:
        """(B * T, D) to the same."""
        linear = torch.ops.mkldnn._linear_pointwise
        width = x.shape[1]
        q, k, v = linear(x, *self.qkv, "none", [], "").view(*shape, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(-1, width)
        x = self.norms[0](linear.binary(attended, x, *self.out, "add"))
        inner = linear(x, *self.up, "gelu", [], "none")
        done: torch.Tensor = self.norms[1](linear.binary(inner, x, *self.down, "add"))
        return done


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
    mask = None
    if attention_mask is not None and not bool(attention_mask.all()):
        mask = torch.zeros(attention_mask.shape, dtype=x.dtype).masked_fill_(attention_mask == 0, torch.finfo(x.dtype).min)[:, None, None, :]
    shape, flat = x.shape[:2], x.reshape(-1, x.shape[-1])
    for layer in bert.packed:
        flat = layer(flat, shape, mask)
    return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=flat.view(*shape, -1))
