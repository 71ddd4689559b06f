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
    if world > 1:
        sums = [int(widths[part].sum()) for part in parts]
        assert max(sums) - min(sums) <= 0.35 * max(sums)


def test_cuts_are_the_cheapest_there_are() -> None:
    from itertools import combinations

    generator = np.random.default_rng(0)
    for count, size, overhead in ((1, None, 5), (7, None, 20), (8, 3, 20), (8, None, 10**6), (8, None, 0)):
        widths = np.sort(generator.integers(1, 60, count))
        splits = [[0, *inner, count] for k in range(count) for inner in combinations(range(1, count), k)]
        pieces = [list(zip(split[:-1], split[1:], strict=True)) for split in splits]
        allowed = [p for p in pieces if size is None or max(end - start for start, end in p) <= size]
        cost = min(sum((end - start) * int(widths[end - 1]) + overhead for start, end in p) for p in allowed)
        found = plan.cuts(widths, size, overhead)
        assert found in allowed
        assert sum((end - start) * int(widths[end - 1]) + overhead for start, end in found) == cost
        if overhead == 10**6:
            assert found == [(0, count)]


def test_equal_parts_say_what_they_leave_out() -> None:
    batches, left = plan.equal_parts([np.arange(7), np.arange(4), np.arange(1)], 2)
    assert [len(b) for b in batches] == [6, 4]
    assert left == 2


def test_nonsense_is_refused() -> None:
    with pytest.raises(UsageError):
        plan.global_batches(5, 0, 0, 0)
    with pytest.raises(UsageError):
        plan.global_batches(0, 5, 0, 0)
