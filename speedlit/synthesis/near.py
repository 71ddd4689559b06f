"""Near-duplicates among any number of texts: MinHash finds the pairs to look at, exact similarity decides.

Two texts are as similar as their sets of runs of ``SHINGLE`` words: J = common runs / all runs (Jaccard). A MinHash sketch of
``SLOTS`` numbers (rensa's R-MinHash) agrees in each slot with probability J. The slots are cut into b bands of r; a pair is looked
at when all slots of some band agree, which happens with probability 1 - (1 - J**r)**b. r is the largest (the fewest needless looks)
for which that is at least ``RECALL`` at the threshold; pairs more similar than that are found still more surely. At 0.8 this gives
21 bands of 6: 0.998 at J = 0.8, 0.9999 at 0.85. What is looked at is decided by its exact J, so nothing below the threshold goes.

Memory is some tens of bytes per text that shares a band with another one; sketches and runs stay on the disk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speedlit.errors import UsageError
from speedlit.synthesis.hashing import GOLDEN, Hashes, Places, encode, mix, runs, weights

SHINGLE, SLOTS = 5, 128  # SPEED names MinHash and no settings; these are ours
RECALL = 0.995
LATEST = 1000  # texts that stay in one bucket and are still compared with a new one; dissimilar texts by the thousand say nothing
LOOKS = 256  # texts that one text is compared with, those that share most bands first
Ranks = NDArray[np.uint32]


def banding(threshold: float, slots: int = SLOTS, recall: float = RECALL) -> tuple[int, int]:
    """Number of bands and slots per band for a threshold (see above).

    Raises:
        UsageError: the threshold is no similarity.
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"filters.minhash_threshold must lie between 0 and 1, not {threshold}; null switches the filter off")
    rows = next((r for r in range(slots, 0, -1) if 1 - (1 - threshold**r) ** (slots // r) >= recall), 1)
    return slots // rows, rows


def sketches(shingles: Hashes, bounds: Places, threshold: float) -> Hashes:
    """One hash per text and band, from the runs of each text (``shingles[bounds[i]:bounds[i + 1]]``, at least one)."""
    from rensa import RMinHash

    bands, rows = banding(threshold)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles, bounds.astype(np.uint64), SLOTS, 0)
    slots = np.array(matrix.to_rows(), dtype=np.uint64)[:, : bands * rows].reshape(-1, bands, rows)
    return mix((slots * weights(rows)).sum(axis=2, dtype=np.uint64) + np.arange(1, bands + 1, dtype=np.uint64) * GOLDEN)


def near_duplicates(count: int, bands: Callable[[int], Hashes], runs_of: Callable[[int], NDArray[np.uint32]], threshold: float) -> list[int]:
    """The texts that resemble an earlier one which stays: 0 .. count - 1 are gone through once, in this order.

    Args:
        count: how many texts.
        bands: gives the hashes of all texts in one band.
        runs_of: gives the hashed runs of one text.
        threshold: least Jaccard similarity of near-duplicates.
    """
    shared = Shared.of(count, bands, banding(threshold)[0])
    return [rank for rank, buckets in shared if shared.is_near(rank, buckets, runs_of, threshold)]


@dataclass
class Shared:
    """Who shares bands with whom: only texts and buckets (equal hashes in one band) of two texts or more.

    Attributes:
        ranks: texts, ascending, one entry per bucket they are in.
        buckets: those buckets.
        starts: where each bucket's places begin in ``stays``.
        filled: how many places of each bucket are taken.
        stays: the texts that stay, bucket by bucket.
    """

    ranks: Ranks
    buckets: Ranks
    starts: Places
    filled: Places
    stays: Ranks

    @classmethod
    def of(cls, count: int, bands: Callable[[int], Hashes], number: int) -> Shared:
        """Group the texts, band by band."""
        ranks, buckets, sizes = [np.zeros(0, np.uint32)], [np.zeros(0, np.uint32)], [np.zeros(0, np.int64)]
        total = 0
        for band in range(number if count else 0):
            hashes = bands(band)
            order = np.argsort(hashes, kind="stable")
            ordered = hashes[order]
            bucket = np.cumsum(np.concatenate([[False], ordered[1:] != ordered[:-1]]))
            size = np.bincount(bucket)
            several = size > 1
            chosen = several[bucket]
            ranks.append(order[chosen].astype(np.uint32))
            buckets.append((np.cumsum(several) - 1 + total)[bucket[chosen]].astype(np.uint32))
            sizes.append(size[several])
            total += int(several.sum())
        rank, bucket = np.concatenate(ranks), np.concatenate(buckets)
        order = np.argsort(rank, kind="stable")
        capacity = np.concatenate(sizes)
        starts = np.cumsum(capacity) - capacity
        return cls(rank[order], bucket[order], starts, np.zeros(len(capacity), np.int64), np.zeros(len(rank), np.uint32))

    def __iter__(self) -> Iterator[tuple[int, Ranks]]:
        """Each text with its buckets."""
        bounds = np.flatnonzero(np.diff(self.ranks, prepend=self.ranks[:1] - 1, append=self.ranks[-1:] + 1))
        for start, end in zip(bounds, bounds[1:], strict=False):
            yield int(self.ranks[start]), self.buckets[start:end]

    def is_near(self, rank: int, buckets: Ranks, runs_of: Callable[[int], NDArray[np.uint32]], threshold: float) -> bool:
        """Whether a text resembles one that stays; remembers it as staying if not."""
        found = [self.stays[max(end - LATEST, start) : end] for start, end in zip(*self._span(buckets), strict=True) if end > start]
        if found:
            others, times = np.unique(np.concatenate(found), return_counts=True)
            mine = set(runs_of(rank).tolist())
            for other in others[np.argsort(-times, kind="stable")[:LOOKS]]:
                if jaccard(mine, set(runs_of(int(other)).tolist())) >= threshold:
                    return True
        self.stays[self.starts[buckets] + self.filled[buckets]] = rank
        self.filled[buckets] += 1
        return False

    def _span(self, buckets: Ranks) -> tuple[list[int], list[int]]:
        starts = self.starts[buckets]
        return starts.tolist(), (starts + self.filled[buckets]).tolist()


def jaccard(a: set[int], b: set[int]) -> float:
    """Jaccard similarity of two sets."""
    common = len(a & b)
    return common / (len(a) + len(b) - common) if a or b else 1.0


class NearFilter:
    """The same for texts that come one by one and are few (they stay in memory).

    Args:
        threshold: least Jaccard similarity of near-duplicates.
    """

    def __init__(self, threshold: float = 0.8) -> None:
        banding(threshold)
        self._threshold = threshold
        self._stays: list[set[int]] = []
        self._buckets: dict[tuple[int, int], list[int]] = defaultdict(list)

    def is_duplicate(self, text: str) -> bool:
        """Whether a similar text was seen before; remembers it if not."""
        tokens, bounds = encode([text])
        shingles, places = runs(tokens, bounds[:-1], bounds[1:], SHINGLE)
        mine, bands = set(shingles.tolist()), list(enumerate(sketches(shingles, places, self._threshold)[0].tolist()))
        if any(jaccard(mine, self._stays[other]) >= self._threshold for other in {i for band in bands for i in self._buckets.get(band, ())}):
            return True
        for band in bands:
            self._buckets[band].append(len(self._stays))
        self._stays.append(mine)
        return False
