"""The batch plan: which samples make which global batch, as a pure function of sizes, seed and epoch.

Global batches are made first, without looking at the number of ranks, micro-batches or loader workers; ranks then take
slices and cut them into micro-batches by length. So the same batches go on after any change of the machine, and the state
of a run is two integers: epoch and step within it.

Large sets are shuffled in windows: the chunks are put in random order, so many at a time are open, and samples are drawn
among those. A batch reads from the window it belongs to and, for what a rarer task kind had left over, from the one before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speedlit.errors import UsageError


def global_batches(
    count: int,
    size: int,
    seed: int,
    epoch: int,
    kinds: np.ndarray | None = None,
    keep_rest: bool = True,
    members: np.ndarray | None = None,
    chunks: np.ndarray | None = None,
    window: int = 8,
) -> list[np.ndarray]:
    """The global batches of one epoch, in order.

    Args:
        count: samples.
        size: samples in a global batch.
        seed: of the run.
        epoch: from 0.
        kinds: task kind of each sample; given, every batch holds one kind only.
        keep_rest: keep the last, smaller batch (of each kind). Without it the rest of a kind is left out of this epoch,
            another part of it each time; a kind with fewer samples than a batch is always kept.
        members: ascending indices of the samples that the epoch takes, one as often as it takes it; None: all of them once.
        chunks: where the chunks of the set begin, and ``count``; None: one chunk.
        window: chunks that are open at a time.

    Returns:
        Index arrays. How many there are does not depend on the epoch, where the number of members of each kind doesn't.

    Raises:
        UsageError: no samples, or a size below 1.
    """
    if size < 1 or count < 1:
        raise UsageError(f"a batch of {size} out of {count} samples: both must be at least 1")
    generator = np.random.default_rng([seed & 0xFFFFFFFF, epoch])
    members = np.arange(count) if members is None else members
    order, window_of = _shuffled(members, np.asarray([0, count]) if chunks is None else chunks, window, generator)
    kind_of = np.zeros(len(order), dtype=np.int64) if kinds is None else kinds[order]
    batches: list[tuple[int, np.ndarray]] = []  # with the window that completes them
    for kind in np.unique(kind_of):
        places = np.flatnonzero(kind_of == kind)
        cut = [places[start : start + size] for start in range(0, len(places), size)]
        if len(cut) > 1 and len(cut[-1]) < size and not keep_rest:
            cut.pop()
        batches += [(int(window_of[places[-1]]), order[places]) for places in cut]
    if kinds is None:
        return [batch for _, batch in batches]
    out: list[np.ndarray] = []
    for number in range(int(window_of[-1]) + 1):
        completed = [batch for where, batch in batches if where == number]
        out += [completed[i] for i in generator.permutation(len(completed))]
    return out


def _shuffled(members: np.ndarray, chunks: np.ndarray, window: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Members in random order, window by window, and the window of each."""
    count = len(chunks) - 1
    if count <= window:
        return members[generator.permutation(len(members))], np.zeros(len(members), dtype=np.int64)
    bounds, order = np.searchsorted(members, chunks), generator.permutation(count)
    opened = [np.concatenate([members[bounds[c] : bounds[c + 1]] for c in order[start : start + window]]) for start in range(0, count, window)]
    opened = [generator.permutation(part) for part in opened if len(part)]
    return np.concatenate(opened), np.repeat(np.arange(len(opened)), [len(part) for part in opened])


def share(groups: Sequence[np.ndarray], take: int, seed: Sequence[int], epoch: int) -> np.ndarray:
    """Which samples of a set an epoch takes, if not all of them once: ascending indices.

    Epochs go round the set, one beginning where the one before ended: no sample comes a second time before all have come
    once. Every group (task kind) gives its share of ``take``, the same number in each epoch.

    Args:
        groups: indices of the samples of each kind.
        take: samples of an epoch; more than there are: some come several times.
        seed: of the run, and the number of the set.
        epoch: from 0.
    """
    sizes = [len(group) for group in groups]
    exact = [take * size / sum(sizes) for size in sizes]
    counts = [int(value) for value in exact]
    for index in sorted(range(len(groups)), key=lambda i: (counts[i] - exact[i], i))[: take - sum(counts)]:
        counts[index] += 1  # largest remainders first
    parts = []
    for number, (group, count) in enumerate(zip(groups, counts, strict=True)):
        places = (epoch * count + np.arange(count)) % len(group)
        parts.append(np.random.default_rng([*seed, number]).permutation(group)[places])
    return np.sort(np.concatenate(parts))


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


def micro_batches(part: np.ndarray, widths: np.ndarray, size: int | None = None, overhead: int = 256, tokens: int | None = None) -> list[np.ndarray]:
    """Cut a rank's slice into micro-batches of similar length, so that little of them is padding; the widest comes first.

    The widest first: its blocks of memory then serve all the others. The other way round each would find the freed ones too small.

    Args:
        part: sample indices.
        widths: length of every sample of the set.
        size: samples in a micro-batch at most; None: no bound.
        overhead: what one more forward and backward pass costs, in padded tokens.
        tokens: padded tokens in a micro-batch of several samples at most; None: no bound.
    """
    by_length = part[np.argsort(widths[part], kind="stable")]
    return [by_length[start:end] for start, end in reversed(cuts(widths[by_length], size, overhead, tokens))]


def cuts(sorted_widths: np.ndarray, size: int | None = None, overhead: int = 256, tokens: int | None = None) -> list[tuple[int, int]]:
    """Where to cut rows in ascending order of length: the split with the fewest padded tokens plus overhead.

    Args:
        sorted_widths: ascending.
        size: rows in a piece at most.
        overhead: cost of a piece besides its padded tokens.
        tokens: padded tokens in a piece at most; a row that is longer is a piece of its own.

    Returns:
        Start and end of each piece.
    """
    count = len(sorted_widths)
    size = min(size or count, count)
    best, origin = np.zeros(count + 1), np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        width = max(int(sorted_widths[end - 1]), 1)
        first = max(0, end - (size if tokens is None else min(size, max(1, tokens // width))))
        costs = best[first:end] + (end - np.arange(first, end)) * sorted_widths[end - 1]
        pick = int(costs.argmin())
        best[end], origin[end] = costs[pick] + overhead, first + pick
    found, end = [], count
    while end > 0:
        found.append((int(origin[end]), end))
        end = int(origin[end])
    return found[::-1]
