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
    """Weights in matrix products per token: frozen ones, trained ones (adapters), and those of the output head (in neither)."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    frozen = trained = 0
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and layer is not head:
            size = layer.in_features * layer.out_features
            trained, frozen = (trained + size, frozen) if layer.weight.requires_grad else (trained, frozen + size)
    return frozen, trained, 0 if head is None else head.weight.numel()


def step_flops(model: Any, tokens: float, predicted: float) -> float:
    """Operations of a training step's matrix products on real tokens, nothing computed twice: 2 per weight and token forward,
    2 for the gradient of what came in, and 2 more for the gradient of a trained weight. Attention's scores, references and padding
    are left out, so that the share of the machine's rate is a lower bound.

    Args:
        model: what is trained.
        tokens: real tokens.
        predicted: those for which the output head makes logits.
    """
    frozen, trained, head = matrix_sizes(model)
    return tokens * (4 * frozen + 6 * trained) + predicted * 4 * head
