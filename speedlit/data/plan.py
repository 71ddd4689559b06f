"""The batch plan: which samples make which global batch, as a pure function of sizes, seed and epoch.

Global batches are made first, without looking at the number of ranks, micro-batches or loader workers; ranks then take
slices and cut them into micro-batches by length. So the same batches go on after any change of the machine, and the state
of a run is two integers: epoch and step within it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speedlit.errors import UsageError


def global_batches(count: int, size: int, seed: int, epoch: int, kinds: Sequence[int] | np.ndarray | None = None, keep_rest: bool = True) -> list[np.ndarray]:
    """The global batches of one epoch, in order.

    Args:
        count: samples.
        size: samples in a global batch.
        seed: of the run.
        epoch: from 0.
        kinds: task kind of each sample; given, every batch holds one kind only.
        keep_rest: keep the last, smaller batch (of each kind). Without it the rest of a kind is left out of this epoch,
            another part of it each time; a kind with fewer samples than a batch is always kept.

    Returns:
        Index arrays; no sample twice. How many there are does not depend on the epoch.

    Raises:
        UsageError: no samples, or a size below 1.
    """
    if size < 1 or count < 1:
        raise UsageError(f"a batch of {size} out of {count} samples: both must be at least 1")
    generator = np.random.default_rng([seed & 0xFFFFFFFF, epoch])
    order = generator.permutation(count)
    groups = [order] if kinds is None else [order[np.asarray(kinds)[order] == kind] for kind in np.unique(np.asarray(kinds))]
    batches: list[np.ndarray] = []
    for group in groups:
        cut = [group[start : start + size] for start in range(0, len(group), size)]
        if len(cut) > 1 and len(cut[-1]) < size and not keep_rest:
            cut.pop()
        batches += cut
    return [batches[i] for i in generator.permutation(len(batches))] if kinds is not None else batches


def rank_slice(batch: np.ndarray, widths: np.ndarray, rank: int, world: int) -> np.ndarray:
    """The part of a global batch that one rank works on: every ``world``-th by length, so that ranks have equal work.

    Args:
        batch: sample indices.
        widths: length of every sample of the set.
        rank: which rank.
        world: number of ranks.
    """
    if world == 1:
        return batch
    longest_first = batch[np.argsort(-widths[batch], kind="stable")]
    return longest_first[rank::world]


def micro_batches(part: np.ndarray, widths: np.ndarray, size: int | None = None, overhead: int = 256) -> list[np.ndarray]:
    """Cut a rank's slice into micro-batches of similar length, so that little of them is padding.

    Args:
        part: sample indices.
        widths: length of every sample of the set.
        size: samples in a micro-batch at most; None: no bound.
        overhead: what one more forward and backward pass costs, in padded tokens.
    """
    by_length = part[np.argsort(widths[part], kind="stable")]
    return [by_length[start:end] for start, end in cuts(widths[by_length], size, overhead)]


def cuts(sorted_widths: np.ndarray, size: int | None = None, overhead: int = 256) -> list[tuple[int, int]]:
    """Where to cut rows in ascending order of length: the split with the fewest padded tokens plus overhead.

    Args:
        sorted_widths: ascending.
        size: rows in a piece at most.
        overhead: cost of a piece besides its padded tokens.

    Returns:
        Start and end of each piece.
    """
    count = len(sorted_widths)
    size = min(size or count, count)
    best, origin = np.zeros(count + 1), np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        first = max(0, end - size)
        costs = best[first:end] + (end - np.arange(first, end)) * sorted_widths[end - 1]
        pick = int(costs.argmin())
        best[end], origin[end] = costs[pick] + overhead, first + pick
    found, end = [], count
    while end > 0:
        found.append((int(origin[end]), end))
        end = int(origin[end])
    return found[::-1]


def equal_parts(batches: list[np.ndarray], world: int) -> tuple[list[np.ndarray], int]:
    """Batches cut to a multiple of ``world`` (losses over all ranks' vectors need equal parts), and how many samples that leaves out."""
    cut = [batch[: len(batch) // world * world] for batch in batches]
    return [batch for batch in cut if len(batch)], sum(map(len, batches)) - sum(map(len, cut))
