"""How many floating-point operations a step needs, and how many the machine can do: the physical limit of a training step."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import torch


@lru_cache
def gemm_rate(device: str, dtype: torch.dtype, size: int = 2048, seconds: float = 0.2) -> float:
    """FLOP/s of a large matrix product on this device with the threads in use, the best of a few; measured once per process."""
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    for _ in range(200):
        start = time.perf_counter()
        torch.mm(left, right)
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() > end:
            break
    return 2 * size**3 / best


def matrix_sizes(model: Any) -> tuple[int, int, int]:
    """Weights in matrix products per token: frozen ones, trained ones, and those of the output head (not in the other two)."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    frozen = trained = 0
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and layer is not head:
            size = layer.in_features * layer.out_features
            if layer.weight.requires_grad:
                trained += size
            else:
                frozen += size
    return frozen, trained, 0 if head is None else head.weight.numel()
