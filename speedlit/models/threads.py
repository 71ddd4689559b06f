"""Several passes through a network side by side, each on threads of its own.

On a CPU two passes on one core each are done sooner than one after the other on both: most operations of a small network are
too short to be shared out, and a matrix product shared by two cores waits for the slower one. What a pass computes does
not depend on how many run beside it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch

NAME = "side by side"
MOST = 4  # at a time: each has its own activations

Result = TypeVar("Result")
Gradients = tuple[torch.Tensor | None, ...]


def lanes() -> int:
    """How many passes this thread may have run side by side; 1 where it has one thread only, or is such a pass itself."""
    return 1 if threading.current_thread().name.startswith(NAME) else min(MOST, torch.get_num_threads())


def side_by_side(jobs: Sequence[Callable[[], Result]]) -> Iterator[Result]:
    """Run CPU jobs, as many at a time as there are ``lanes``; their results come in the order of the jobs.

    Each job sees the caller's autocast and gradient mode. It must not draw random numbers (the order would be left to
    chance) nor change what another one reads.

    Raises:
        Exception: what the first failing job raised; those not begun are given up.
    """
    count, threads = min(lanes(), len(jobs)), torch.get_num_threads()
    if count <= 1:
        yield from (job() for job in jobs)
        return
    grad, dtype = torch.is_grad_enabled(), torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None

    def run(job: Callable[[], Result]) -> Result:
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            return job()

    pool = ThreadPoolExecutor(count, NAME, torch.set_num_threads, (max(1, threads // count),))
    try:
        ahead: deque[Future[Any]] = deque()
        for job in jobs:  # a few ahead of the one waited for: results not yet taken need memory
            ahead.append(pool.submit(run, job))
            if len(ahead) > count:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # what a thread sets is also what threads begun later start with


def add_gradients(weights: Sequence[torch.Tensor], gradients: Gradients) -> None:
    """Add them to ``grad`` of the weights, as a backward pass would; None: the weight had no part."""
    for weight, gradient in zip(weights, gradients, strict=True):
        before = weight.grad
        if gradient is not None:
            weight.grad = gradient if before is None else before.add_(gradient)


def passes(run: Callable[..., torch.Tensor], chunks: Sequence[tuple[torch.Tensor, ...]], again: int, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """``run(*chunk)`` of each chunk, side by side, forward and backward.

    Args:
        run: one result per chunk; draws no random numbers.
        chunks: inputs, which get no gradient.
        again: how many chunks, from the first, keep nothing for the backward pass but are computed again in it.
        weights: what gradients go to.
    """
    return list(_Passes.apply(run, chunks, again, *weights))


class _Passes(torch.autograd.Function):
    """All chunks are one operation on the weights: so its backward pass can share them out, and adds gradients in their order."""

    @staticmethod
    def forward(ctx: Any, run: Any, chunks: Sequence[tuple[torch.Tensor, ...]], again: int, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        def one(number: int) -> torch.Tensor:
            with torch.set_grad_enabled(number >= again):
                found: torch.Tensor = run(*chunks[number])
                return found

        found = list(side_by_side([partial(one, number) for number in range(len(chunks))]))
        ctx.run, ctx.chunks, ctx.kept, ctx.weights = run, chunks, dict(enumerate(found[again:], again)), weights
        ctx.dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        return tuple(part.detach() for part in found)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        def one(number: int) -> Gradients:
            part = ctx.kept.pop(number) if number in ctx.kept else ctx.run(*ctx.chunks[number])
            found: Gradients = torch.autograd.grad(part, ctx.weights, grads[number], allow_unused=True)
            return found

        sums: list[torch.Tensor | None] = [None] * len(ctx.weights)
        with torch.enable_grad(), torch.autocast("cpu", dtype=ctx.dtype, enabled=ctx.dtype is not None):
            for gradients in side_by_side([partial(one, number) for number in reversed(range(len(ctx.chunks)))]):
                for place, gradient in enumerate(gradients):
                    if gradient is not None:
                        before = sums[place]
                        sums[place] = gradient if before is None else before.add_(gradient)
        return None, None, None, *sums
