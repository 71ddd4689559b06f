"""The batch plan: each sample once, the same batches for any number of ranks, workers and micro-batches."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from speedlit.data import plan
from speedlit.errors import UsageError


@pytest.mark.parametrize(("count", "size"), [(1, 4), (7, 4), (8, 4), (1003, 64)])
def test_each_sample_once_per_epoch(count: int, size: int) -> None:
    for epoch in range(3):
        batches = plan.global_batches(count, size, seed=3, epoch=epoch)
        assert sorted(np.concatenate(batches).tolist()) == list(range(count))
        assert len(batches) == -(-count // size)
        assert all(len(batch) == size for batch in batches[:-1])


def test_the_plan_depends_on_seed_and_epoch_only() -> None:
    one = plan.global_batches(100, 8, 1, 0)
    assert all(np.array_equal(a, b) for a, b in zip(one, plan.global_batches(100, 8, 1, 0), strict=True))
    assert not np.array_equal(one[0], plan.global_batches(100, 8, 1, 1)[0])
    assert not np.array_equal(one[0], plan.global_batches(100, 8, 2, 0)[0])


def test_contrastive_batches_hold_one_kind_each() -> None:
    kinds = np.array([0] * 70 + [1] * 33 + [2] * 5)
    for epoch in range(4):
        batches = plan.global_batches(len(kinds), 16, 0, epoch, kinds, keep_rest=False)
        assert all(len({kinds[i] for i in batch.tolist()}) == 1 for batch in batches)
        assert Counter(int(kinds[batch[0]]) for batch in batches) == {0: 4, 1: 2, 2: 1}  # a kind smaller than a batch is kept
    full = plan.global_batches(len(kinds), 16, 0, 0, kinds)
    assert sorted(np.concatenate(full).tolist()) == list(range(len(kinds)))
    used = [{int(i) for batch in plan.global_batches(len(kinds), 16, 0, epoch, kinds, False) for i in batch} for epoch in (0, 1)]
    assert used[0] != used[1]  # another rest is left out each time


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro", [None, 1, 5])
def test_ranks_and_micro_batches_share_a_batch_without_loss(world: int, micro: int | None) -> None:
    widths = np.random.default_rng(0).integers(3, 90, 50)
    batch = plan.global_batches(50, 24, 0, 0)[0]
    parts = [plan.rank_slice(batch, widths, rank, world) for rank in range(world)]
    cuts = [cut for part in parts for cut in plan.micro_batches(part, widths, micro)]
    assert sorted(np.concatenate(cuts).tolist()) == sorted(batch.tolist())
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if micro:
        assert max(map(len, cuts)) <= micro
    for part in parts:  # the widest first: the others live in the memory that it has freed
        longest = [int(widths[cut].max()) for cut in plan.micro_batches(part, widths, micro)]
        assert longest == sorted(longest, reverse=True)
    if world > 1:
        sums = [int(widths[part].sum()) for part in parts]
        assert max(sums) - min(sums) <= 0.35 * max(sums)


def test_cuts_are_the_cheapest_there_are() -> None:
    from itertools import combinations

    generator = np.random.default_rng(0)
    cases = [(1, None, 5, None), (7, None, 20, None), (8, 3, 20, None), (8, None, 10**6, None), (8, None, 0, None), (8, None, 20, 70), (8, 2, 20, 40)]
    for count, size, overhead, tokens in cases:
        widths = np.sort(generator.integers(1, 60, count))
        splits = [[0, *inner, count] for k in range(count) for inner in combinations(range(1, count), k)]
        pieces = [list(zip(split[:-1], split[1:], strict=True)) for split in splits]
        allowed = [p for p in pieces if size is None or max(end - start for start, end in p) <= size]
        allowed = [p for p in allowed if tokens is None or all(end - start == 1 or (end - start) * int(widths[end - 1]) <= tokens for start, end in p)]
        cost = min(sum((end - start) * int(widths[end - 1]) + overhead for start, end in p) for p in allowed)
        found = plan.cuts(widths, size, overhead, tokens)
        assert found in allowed
        assert sum((end - start) * int(widths[end - 1]) + overhead for start, end in found) == cost
        if overhead == 10**6:
            assert found == [(0, count)]


def test_chunks_are_opened_in_windows() -> None:
    """A batch reads from its window's chunks and the window before; every sample once; as many batches in each epoch."""
    chunks = np.arange(0, 2001, 50)  # 40 chunks of 50
    kinds = np.random.default_rng(0).choice(3, 2000, p=[0.5, 0.3, 0.2])
    counts = set()
    for epoch in range(3):
        for by_kind in (None, kinds):
            batches = plan.global_batches(2000, 16, 5, epoch, by_kind, chunks=chunks, window=4)
            assert sorted(np.concatenate(batches).tolist()) == list(range(2000))
            assert by_kind is None or all(len(set(kinds[batch].tolist())) == 1 for batch in batches)
            touched = [set((batch // 50).tolist()) for batch in batches]
            assert max(map(len, touched)) <= 8
            last = {chunk: number for number, found in enumerate(touched) for chunk in found}
            first = {chunk: number for number, found in reversed(list(enumerate(touched))) for chunk in found}
            open_at_once = [sum(first[c] <= number <= last[c] for c in first) for number in range(len(batches))]
            assert max(open_at_once) <= 12
            counts.add((by_kind is None, len(batches)))
    assert len(counts) == 2
    mixed = plan.global_batches(2000, 16, 5, 0, chunks=chunks, window=4)[0]
    assert len(set((mixed // 50).tolist())) > 1


def test_a_share_of_a_set_goes_round_it() -> None:
    groups = [np.arange(0, 30), np.arange(30, 41), np.arange(41, 43)]
    for take in (1, 10, 43, 60, 100):
        seen: Counter[int] = Counter()
        sizes = set()
        for epoch in range(7):
            found = plan.share(groups, take, [3, 0], epoch)
            assert len(found) == take
            assert (np.diff(found) >= 0).all()
            assert np.array_equal(found, plan.share(groups, take, [3, 0], epoch))
            seen.update(found.tolist())
            sizes.add(tuple(int(((found >= g[0]) & (found <= g[-1])).sum()) for g in groups))
        assert len(sizes) == 1
        for group in groups:
            values = [seen[int(index)] for index in group]
            assert max(values) - min(values) <= 1


def test_nonsense_is_refused() -> None:
    with pytest.raises(UsageError):
        plan.global_batches(5, 0, 0, 0)
    with pytest.raises(UsageError):
        plan.global_batches(0, 5, 0, 0)
