"""Training with LoRA in fewer and cheaper operations: the same sums, so the same losses and gradients up to rounding.

Under autocast a plain network casts every frozen weight and every input again in each pass, and a low-rank update is four
operations of its own. Here

1. frozen weights are cast once and kept;
2. a linear layer with its update is one function: the update is added into the layer's product, and nothing but its input
   and the rank-r projection is kept for the backward pass;
3. in decoder layers of the Llama shape (Llama, Mistral, Qwen2, Qwen3) a norm hands its output over in the dtype in which
   it is read, and rotary positions are applied in one go.

Modules keep their classes, names and weights, so that checkpoints and exports know nothing of it. What is not recognised
(other layers, variants of LoRA, trained base weights, 4-bit weights) stays as it is.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch.nn import functional

from speedlit.models import attention

FAMILIES = {f"transformers.models.{kind.lower()}.modeling_{kind.lower()}": kind for kind in ("Llama", "Mistral", "Qwen2", "Qwen3")}


def speed_up(model: Any) -> int:
    """Put the fast paths into a network, in place. Not for sharded weights, which come and go: a kept cast would outlive them.

    Args:
        model: a peft model, or any network.

    Returns:
        How many modules have one now.
    """
    from peft.tuners.lora.layer import Linear

    count = 0
    if model.config._attn_implementation == "sdpa" and type(model.base_model).__module__.startswith(("transformers.", "peft.")):
        attention.register()
        model.config._attn_implementation = attention.NAME
    for layer in model.modules():
        kind: Any = type(layer)
        if kind is Linear and type(layer.get_base_layer()) is torch.nn.Linear:
            layer.forward = types.MethodType(_linear, layer)
            count += 1
        family = FAMILIES.get(kind.__module__)
        if family and kind.__name__ == f"{family}DecoderLayer":
            layer.forward, layer.last = types.MethodType(_decoder_layer, layer), False
            layer.self_attn.forward = types.MethodType(_attention, layer.self_attn)
            count += 2
            if type(layer.mlp).__module__ == kind.__module__ and layer.mlp.config.hidden_act == "silu":
                layer.mlp.forward = types.MethodType(_mlp, layer.mlp)
                count += 1
    for stack in model.modules():
        if stack.__class__.__module__ in FAMILIES and hasattr(stack, "layers"):
            stack.layers[-1].last = stack.trims = True
    return count


def mixed(x: torch.Tensor) -> torch.dtype | None:
    """The dtype in which autocast computes matrix products of ``x``; None without autocast."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def frozen_cast(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight of a linear layer in ``dtype``; the cast is kept beside it until the weight changes."""
    weight: torch.Tensor = layer.weight
    if weight.dtype == dtype or weight.requires_grad:
        return weight.to(dtype)
    mark = (weight.data_ptr(), weight._version, dtype)
    if getattr(layer, "cast_mark", None) != mark:
        layer.cast_weight = [weight.detach().to(dtype)]  # in a list: no buffer, no parameter
        layer.cast_mark = mark  # last: passes side by side may make the cast twice, but none reads it before it is there
    found: torch.Tensor = layer.cast_weight[0]
    return found


# -- a linear layer with its low-rank update ----------------------------------------------------------------------------


class _LoRALinear(torch.autograd.Function):
    """x W' + bias + scale (x' A') B', where x' is x or, with dropout, what is left of it. W and bias are frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, dropped: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor, scale: float
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        read = flat if dropped is None else dropped.reshape(-1, x.shape[-1])
        low_a, low_b = a.to(x.dtype), (b * scale).to(x.dtype)
        low = read @ low_a.T
        out = functional.linear(flat, weight, bias).addmm_(low, low_b.T)
        ctx.save_for_backward(read, low, weight, low_a, low_b)
        ctx.dropped, ctx.scale, ctx.shape = dropped is not None, scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        read, low, weight, low_a, low_b = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        back = grad @ low_b
        to_a, to_b = (back.T @ read).float(), (grad.T @ low).float() * ctx.scale
        to_x = to_dropped = None
        if ctx.needs_input_grad[0]:
            to_x = grad @ weight
            if not ctx.dropped:
                to_x.addmm_(back, low_a)
            to_x = to_x.view(ctx.shape)
        if ctx.dropped and ctx.needs_input_grad[1]:
            to_dropped = (back @ low_a).view(ctx.shape)
        return to_x, to_dropped, None, None, to_a, to_b, None


def _parts(layer: Any, x: torch.Tensor) -> tuple[Any, ...] | None:
    """Weight, bias, A, B and scale of a peft LoRA layer as ``_LoRALinear`` takes them for ``x``, A None where no adapter is on; None: no plain layer."""
    dtype = mixed(x) or x.dtype
    base, names = layer.get_base_layer(), layer.active_adapters
    frozen = not base.weight.requires_grad and (base.bias is None or not base.bias.requires_grad)
    if layer.merged or not frozen or not (mixed(x) or x.dtype == base.weight.dtype):
        return None
    weight, bias = frozen_cast(base, dtype), None if base.bias is None else base.bias.to(dtype)
    if layer.disable_adapters or not any(name in layer.lora_A for name in names):
        return weight, bias, None, None, 1.0
    name = names[0]
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    if len(names) > 1 or name in layer.lora_variant or layer.lora_B[name].bias is not None or not (mixed(x) or x.dtype == a.dtype):
        return None
    return weight, bias, a, b, layer.scaling[name]


def _dropout(layer: Any) -> Any:
    """The dropout before a LoRA layer's update, or None where it does nothing."""
    found = layer.lora_dropout[layer.active_adapters[0]]
    return found if layer.training and getattr(found, "p", 0) else None


def _linear(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Forward of a peft LoRA layer over a plain linear layer."""
    parts = None if args or kwargs else _parts(layer, x)
    if parts is None:
        return type(layer).forward(layer, x, *args, **kwargs)  # type: ignore[no-any-return]
    weight, bias, a, b, scale = parts
    x = x.to(weight.dtype)
    if a is None:
        return functional.linear(x, weight, bias)
    dropout = _dropout(layer)
    out: torch.Tensor = _LoRALinear.apply(x, None if dropout is None else dropout(x), weight, bias, a, b, scale)
    return out


class _GatedLinear(torch.autograd.Function):
    """A LoRA layer over silu(gate) up, a product that is made again in the backward pass: it and silu(gate) were a sixth of what a pass keeps."""

    @staticmethod
    def forward(
        ctx: Any, gate: torch.Tensor, up: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor, scale: float
    ) -> torch.Tensor:
        inner = functional.silu(gate).mul_(up).view(-1, gate.shape[-1])
        low_a, low_b = a.to(gate.dtype), (b * scale).to(gate.dtype)
        low = inner @ low_a.T
        out = functional.linear(inner, weight, bias).addmm_(low, low_b.T)
        ctx.save_for_backward(gate, up, low, weight, low_a, low_b)
        ctx.scale = scale
        return out.view(*gate.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate, up, low, weight, low_a, low_b = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        back = grad @ low_b
        to_inner = (grad @ weight).addmm_(back, low_a).view(gate.shape)
        active = functional.silu(gate)
        to_up = to_inner * active
        inner = active.mul_(up).view(-1, gate.shape[-1])
        to_a, to_b = (back.T @ inner).float(), (grad.T @ low).float() * ctx.scale
        return torch.ops.aten.silu_backward(to_inner.mul_(up), gate), to_up, None, None, to_a, to_b, None


# -- decoder layers of the Llama shape ----------------------------------------------------------------------------------


class _Norm(torch.autograd.Function):
    """RMS norm of float32 rows, handed over in ``dtype``."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, inverse, weight)
        return (x * inverse).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, inverse, weight = ctx.saved_tensors
        grad = grad.float()
        to_weight = (grad * x * inverse).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        grad = grad * weight
        share = (grad * x).mean(-1, keepdim=True).mul_(inverse.pow(3))
        return grad.mul_(inverse).addcmul_(x, share, value=-1), to_weight, None, None


class _Rotary(torch.autograd.Function):
    """Rotary positions of (B, T, H, D), computed in float32: (B, H, T, D) in the dtype that came in."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x.transpose(1, 2), cos, sin).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad.transpose(1, 2), cos.transpose(1, 2), -sin.transpose(1, 2)).to(grad.dtype), None, None


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x cos + (-second half, first half) sin; both halves of cos and sin are alike."""
    x = x.float()
    first, second = x.chunk(2, -1)
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(second, sin[..., :half], value=-1)
    out[..., half:].addcmul_(first, sin[..., half:])
    return out


def _normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    if x.dtype != torch.float32 or norm.weight.dtype != torch.float32:
        return norm(x)  # type: ignore[no-any-return]
    out: torch.Tensor = _Norm.apply(x, norm.weight, norm.variance_epsilon, mixed(x) or x.dtype)
    return out


def _decoder_layer(layer: Any, hidden_states: torch.Tensor, wanted: tuple[torch.Tensor, torch.Tensor] | None = None, **kwargs: Any) -> torch.Tensor:
    """Forward of a decoder layer: attention and feed-forward block, each on a norm of what it is added to.

    After the attention of the last layer no token reads another one any more, so the rest is done for ``wanted`` (row, place)
    only, and is 0 elsewhere.
    """
    trim = wanted if layer.last else None
    attended, _ = layer.self_attn(hidden_states=_normed(layer.input_layernorm, hidden_states), wanted=trim, **kwargs)
    shape = hidden_states.shape
    hidden_states = (hidden_states if trim is None else hidden_states[trim]) + attended
    hidden_states = hidden_states + layer.mlp(_normed(layer.post_attention_layernorm, hidden_states))
    return hidden_states if trim is None else hidden_states.new_zeros(shape).index_put(trim, hidden_states)


def _mlp(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Forward of a gated feed-forward block."""
    gate, up, down = layer.gate_proj(x), layer.up_proj(x), layer.down_proj
    parts = _parts(down, gate) if getattr(down.forward, "__func__", None) is _linear else None
    if parts is None or parts[2] is None or _dropout(down) is not None or not gate.dtype == up.dtype == parts[0].dtype:
        return down(layer.act_fn(gate) * up)  # type: ignore[no-any-return]
    out: torch.Tensor = _GatedLinear.apply(gate, up, *parts)
    return out


def _attention(
    layer: Any, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], attention_mask: torch.Tensor | None = None,
    past_key_values: Any = None, wanted: tuple[torch.Tensor, torch.Tensor] | None = None, **kwargs: Any,
) -> tuple[torch.Tensor, Any]:  # fmt: skip
    """Forward of an attention block: as its class has it, but for the rotary positions."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if past_key_values is not None or layer.config._attn_implementation == "eager":
        kwargs.update(position_embeddings=position_embeddings, attention_mask=attention_mask, past_key_values=past_key_values)
        out, weights = type(layer).forward(layer, hidden_states, **kwargs)
        return out if wanted is None else out[wanted], weights
    shape = (*hidden_states.shape[:-1], -1, layer.head_dim)
    q, k, v = (project(hidden_states).view(shape) for project in (layer.q_proj, layer.k_proj, layer.v_proj))
    if hasattr(layer, "q_norm"):
        q, k = layer.q_norm(q), layer.k_norm(k)
    cos, sin = (part.float().unsqueeze(1) for part in position_embeddings)
    window = {"sliding_window": layer.sliding_window if hasattr(layer, "sliding_window") else getattr(layer.config, "sliding_window", None)}
    attend = ALL_ATTENTION_FUNCTIONS[layer.config._attn_implementation]
    out, weights = attend(
        layer, _Rotary.apply(q, cos, sin), _Rotary.apply(k, cos, sin), v.transpose(1, 2), attention_mask,
        dropout=layer.attention_dropout if layer.training else 0.0, scaling=layer.scaling, **window, **kwargs,
    )  # fmt: skip
    out = out.reshape(*shape[:-2], -1)
    return layer.o_proj(out.contiguous() if wanted is None else out[wanted]), weights
