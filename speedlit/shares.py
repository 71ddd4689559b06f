"""Tensors of which each process holds a share: the whole one from all shares, and this process's share of a whole one."""

from __future__ import annotations

import math

import torch
from torch.distributed.tensor import DTensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which this process may hold a share; all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor, cut as ``like`` is cut."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    local = value[part(like)].to(like.device, like.to_local().dtype, copy=True).contiguous()
    return DTensor.from_local(local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())


def part(like: DTensor) -> tuple[slice, ...]:
    """Which part of a tensor this process holds: from where to where in each dimension."""
    found = [(0, size) for size in like.shape]
    for axis, placement in reversed(list(enumerate(like.placements))):  # a matrix is split first, and the piece is then spread
        dimension = getattr(placement, "dim", None)
        if dimension is not None:
            start, end = found[dimension]
            step = -(-(end - start) // like.device_mesh.size(axis))  # as torch.chunk cuts
            first = min(start + like.device_mesh.get_local_rank(axis) * step, end)
            found[dimension] = first, min(first + step, end)
    return tuple(slice(start, end) for start, end in found)


def nearest(size: int, *counts: int) -> int:
    """The number nearest to ``size`` that divides all counts."""
    common = math.gcd(*counts)
    return min((number for number in range(1, common + 1) if common % number == 0), key=lambda number: (abs(number - size), number))
