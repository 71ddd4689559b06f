"""Texts as hashes: every word is a number of 64 bits, and so is every run of words. Many texts at a time, in numpy.

A run of words w0, w1, ... hashes to mix(w0 * c0 + w1 * c1 + ... + length), with fixed odd 64-bit weights c. The words' own hashes
are uniform, so two different runs share a value about once in 2**63 pairs. Nothing here depends on the process or the machine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

WORD = re.compile(r"\w+", re.UNICODE)
VOCABULARY = 200_000  # words whose hashes are remembered; then the memory starts anew
GOLDEN, MIX_1, MIX_2 = (np.uint64(value) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))  # SplitMix64's constants


def words(text: str) -> list[str]:
    """Casefolded words without punctuation."""
    return WORD.findall(text.casefold())


def order_key(*parts: Any) -> int:
    """64 bits of a hash of some parts: an order that depends on nothing else."""
    return int.from_bytes(hashlib.sha256(":".join(map(str, parts)).encode()).digest()[:8], "big")


class _Vocabulary(dict[str, int]):
    def __missing__(self, word: str) -> int:
        if len(self) >= VOCABULARY:
            self.clear()
        value = self[word] = int.from_bytes(hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
        return value


_VOCABULARY = _Vocabulary()


def encode(texts: Sequence[str]) -> tuple[Hashes, Places]:
    """The word hashes of some texts one after the other, and where each text begins (one entry more: where the last ends)."""
    split = [words(text) for text in texts]
    bounds = np.zeros(len(split) + 1, np.int64)
    np.cumsum([len(tokens) for tokens in split], out=bounds[1:])
    hashes = np.fromiter(map(_VOCABULARY.__getitem__, chain.from_iterable(split)), np.uint64, count=int(bounds[-1]))
    return hashes, bounds


def mix(values: Any) -> Hashes:
    """SplitMix64's finaliser: every bit of the input moves about half the bits of the output."""
    values = (values ^ (values >> np.uint64(30))) * MIX_1
    values = (values ^ (values >> np.uint64(27))) * MIX_2
    return np.asarray(values ^ (values >> np.uint64(31)))


def weights(count: int) -> Hashes:
    """The first ``count`` weights of a run's words."""
    return _weights(1 << max(count, 64).bit_length())[:count]


@lru_cache(maxsize=32)
def _weights(count: int) -> Hashes:
    return mix(np.arange(1, count + 1, dtype=np.uint64) * GOLDEN) | np.uint64(1)


def whole(tokens: Hashes, starts: Places, ends: Places) -> Hashes:
    """One hash per stretch of words ``tokens[start:end]``."""
    lengths = ends - starts
    sums = np.zeros(len(lengths), np.uint64)
    filled = np.flatnonzero(lengths)
    if filled.size:
        place, first = _within(lengths[filled])
        products = tokens[place + np.repeat(starts[filled], lengths[filled])] * weights(int(lengths.max()))[place]
        sums[filled] = np.add.reduceat(products, first[:-1])
    return mix(sums + lengths.astype(np.uint64) * GOLDEN)


def runs(tokens: Hashes, starts: Places, ends: Places, size: int) -> tuple[Hashes, Places]:
    """The hashes of all runs of ``size`` words of each stretch; a shorter stretch is one run as a whole.

    Returns:
        The hashes, stretch by stretch in the order of the words, and where each stretch's hashes begin (one entry more at the end).
    """
    lengths = ends - starts
    place, bounds = _within(np.maximum(lengths - size + 1, 1))
    sums = np.full(len(tokens) + 1, np.uint64(size * int(GOLDEN) % 2**64))  # of the run that begins at each word; one more for an empty last stretch
    for step, weight in enumerate(weights(size)):
        sums[: max(len(tokens) - step, 0)] += tokens[step:] * weight
    found = mix(sums)[place + np.repeat(starts, np.diff(bounds))]
    short = np.flatnonzero(lengths < size)
    found[bounds[:-1][short]] = whole(tokens, starts[short], ends[short])
    return found, bounds


def _within(counts: Places) -> tuple[Places, Places]:
    """0, 1, ..., count - 1 for each count, one after the other; and where each series begins, with the end of the last."""
    bounds = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=bounds[1:])
    return np.arange(bounds[-1]) - np.repeat(bounds[:-1], counts), bounds
