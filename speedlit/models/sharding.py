"""Weights spread over processes (FSDP2): layer by layer, so that a process holds one whole layer at a time, and its share of all others."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from speedlit.errors import UsageError
from speedlit.shares import whole

T = TypeVar("T")
BOUND = "run_inside"


def shard(model: Any, mesh: Any, narrow: bool = False, offload: bool = False) -> None:
    """Spread a network in place: each decoder or encoder layer for itself, and what stands around them.

    Args:
        model: with or without head or adapter; all processes hold the same weights.
        mesh: of one dimension.
        narrow: gather weights in bfloat16 and still add gradients in float32; not for packed 4-bit weights, which are no numbers.
        offload: shares wait in the memory of the host.

    Raises:
        UsageError: a network without a list of layers, or a layer of several dtypes.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard, register_fsdp_forward_method

    root = inner(model)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if narrow else MixedPrecisionPolicy()
    settings: dict[str, Any] = {
        "mesh": mesh, "mp_policy": policy, "offload_policy": CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offload else OffloadPolicy(),
        "reshard_after_forward": True,  # at the root as well, so that outside of a forward every weight is a share
    }  # fmt: skip
    for layer in layers(root):
        fully_shard(layer, **settings)
    fully_shard(root, **settings)
    if getattr(root, "lm_head", None) is not None:  # its own forward is passed by: hidden states and head are used apart
        setattr(root, BOUND, MethodType(_entered, root))
        register_fsdp_forward_method(root, BOUND)


def _entered(root: Any, call: Callable[[], T]) -> T:
    root.entered = True
    try:
        return call()
    finally:
        root.entered = False


def inner(model: Any) -> Any:
    """The network inside a peft model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def layers(network: Any) -> list[Any]:
    """The repeated layers: the longest list of modules.

    Raises:
        UsageError: there is none.
    """
    lists = [part for part in network.modules() if isinstance(part, torch.nn.ModuleList) and len(part)]
    if not lists:
        raise UsageError(f"trainer.strategy fsdp spreads a network layer by layer, and {type(network).__name__} has no list of layers; use ddp")
    sizes = [sum(weight.numel() for weight in part.parameters()) for part in lists]
    return list(lists[sizes.index(max(sizes))])


def inside(model: Any, call: Callable[[], T]) -> T:
    """Call with the weights around the layers (embeddings, norm, head) whole; of a network that isn't spread just call."""
    root = inner(model)
    bound = None if getattr(root, "entered", False) else getattr(root, BOUND, None)
    return bound(call) if bound else call()


def most(count: int, device: torch.device) -> int:
    """The largest count of any process."""
    found = torch.tensor(count, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def average_gradients(weights: list[torch.Tensor]) -> None:
    """What is held whole by each process (a learned temperature) gets the mean gradient here; shares got theirs in the backward pass."""
    for weight in weights:
        if weight.grad is not None and not isinstance(weight.grad, DTensor):
            dist.all_reduce(weight.grad)
            weight.grad /= dist.get_world_size()


def alike(weights: list[torch.Tensor]) -> bool:
    """Whether all weights are shares, or all are whole; single numbers go with both."""
    return len({isinstance(weight, DTensor) for weight in weights if weight.ndim}) < 2


def _mesh(tensor: torch.Tensor) -> Any:
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def clip(weights: list[torch.Tensor], limit: float) -> torch.Tensor:
    """The norm of all gradients, which are scaled down to ``limit`` where it is larger: torch's own, and the same for a mixture of shares and whole ones."""
    gradients: list[torch.Tensor] = [weight.grad for weight in weights if weight.grad is not None]
    apart: dict[Any, list[torch.Tensor]] = {}
    for gradient in gradients:
        apart.setdefault(_mesh(gradient), []).append(gradient)
    if len(apart) < 2:
        return whole(torch.nn.utils.clip_grad_norm_(weights, limit))
    norm: torch.Tensor = torch.stack([whole(torch.nn.utils.get_total_norm(part)) for part in apart.values()]).norm()  # which torch refuses
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        (gradient.to_local() if isinstance(gradient, DTensor) else gradient).mul_(factor.to(gradient.device))
    return norm
