"""Tensors of which each process holds a share: the whole one from all shares, and this process's share of a whole one."""

from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which this process may hold a share; all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor, cut as ``like`` is cut."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    dimension, start, end = part(like)
    local = value.narrow(dimension, start, end - start).to(like.device, like.to_local().dtype, copy=True).contiguous()
    return DTensor.from_local(local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())


def part(like: DTensor) -> tuple[int, int, int]:
    """Which part of a tensor this process holds: the dimension that is cut, and where it begins and ends there."""
    dimension = like.placements[0].dim  # type: ignore[attr-defined]
    size = like.shape[dimension]
    step = -(-size // like.device_mesh.size())  # as torch.chunk cuts
    start = min(like.device_mesh.get_local_rank() * step, size)
    return dimension, start, min(start + step, size)
