"""Have the texts become more alike from one writer to the next?

Figures of diversity depend on how many texts they are of, and on their prompts. So both writers are compared on the same prompts, one
answer each, in blocks of one size; the drops of the blocks give an interval, and chance alone raises no alarm.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from speedlit.records import Record
from speedlit.synthesis.filters import words
from speedlit.synthesis.quality.alarms import Figure, judged

BLOCKS = (500, 100)  # texts that are compared with each other; the larger where there are enough blocks
ENOUGH = 4  # blocks
MOST = 2500  # prompts
LONGEST = 100  # words of a text
BLEU = 4  # longest runs of words that Self-BLEU compares

Tokens = Sequence[str]


class Trend:
    """Compares two writers on the prompts that both have answered; keeps the prompts with the smallest ids, so memory stays bounded.

    Args:
        levels: the ``quality`` section of a run; missing keys take their defaults.
    """

    def __init__(self, levels: Mapping[str, Any] | None = None) -> None:
        self._levels = levels
        self._ids: dict[str, list[str]] = defaultdict(list)  # per writer, sorted
        self._texts: dict[str, dict[str, Tokens]] = defaultdict(dict)

    def add(self, writer: str, record: Record) -> None:
        """Take a record; of several answers to a prompt the first counts."""
        ids, texts = self._ids[writer], self._texts[writer]
        if record.index or record.prompt_id in texts or (len(ids) == MOST and record.prompt_id > ids[-1]):
            return
        bisect.insort(ids, record.prompt_id)
        texts[record.prompt_id] = words(f"{record.query} {record.positive}")[:LONGEST]
        if len(ids) > MOST:
            del texts[ids.pop()]

    def result(self, before: str, after: str) -> dict[str, Any]:
        """``collapse`` is the relative drop of the figure that surely drops most; only ``alarms``, and that empty, where there are too few prompts."""
        old, new = self._texts[before], self._texts[after]
        common = sorted(old.keys() & new.keys())
        size = next((size for size in BLOCKS if len(common) >= ENOUGH * size), 0)
        if not size:
            return {"alarms": []}
        blocks = [common[start : start + size] for start in range(0, len(common) - size + 1, size)]
        pairs = [(figures([old[name] for name in block]), figures([new[name] for name in block])) for block in blocks]
        drops = {name: drop([(a[name], b[name]) for a, b in pairs]) for name in pairs[0][0]}
        worst = max(drops.values(), key=lambda figure: figure.low or 0.0)
        shown = {f"drop of {name}": round(figure.value, 4) for name, figure in drops.items()}
        return {"prompts": len(blocks) * size, **shown, **judged({"collapse": worst}, self._levels)}


def drop(pairs: Sequence[tuple[float, float]]) -> Figure:
    """Mean relative drop over blocks, with its 95 % Student interval."""
    from scipy.special import stdtrit

    found = [1 - after / before if before else 0.0 for before, after in pairs]
    mean, half = float(np.mean(found)), float(stdtrit(len(found) - 1, 0.975) * np.std(found, ddof=1) / math.sqrt(len(found)))
    return Figure(mean, len(found), mean - half, mean + half)


def figures(texts: Sequence[Tokens]) -> dict[str, float]:
    """Distinct pairs of words over all such pairs, entropy in bits of the first three words, and 1 - Self-BLEU."""
    return {"distinct_2": distinct_2(texts), "opening_entropy": opening_entropy(texts), "unlikeness": 1 - self_bleu(texts)}


def distinct_2(texts: Sequence[Tokens]) -> float:
    """Distinct pairs of neighbouring words over all such pairs."""
    pairs = Counter(pair for text in texts for pair in zip(text, text[1:], strict=False))
    return len(pairs) / max(sum(pairs.values()), 1)


def opening_entropy(texts: Sequence[Tokens]) -> float:
    """Entropy in bits of the first three words: low where a writer always begins alike."""
    counts = Counter(tuple(text[:3]) for text in texts)
    return -sum(n / len(texts) * math.log2(n / len(texts)) for n in counts.values())


def self_bleu(texts: Sequence[Tokens]) -> float:
    """Mean BLEU of each text against all others: geometric mean of the shares of its runs of 1 to 4 words that occur elsewhere, clipped.

    The most frequent count of a run in another text is known from the two highest counts, so one pass over all runs is enough. There is
    no penalty for brevity: among hundreds of others one is as short. Runs that occur nowhere else count as half a hit (smoothing).
    """
    total = np.zeros(len(texts))
    for size in range(1, BLEU + 1):
        counts = [Counter(tuple(text[i : i + size]) for i in range(len(text) - size + 1)) for text in texts]
        highest: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0])
        for count in counts:
            for run, n in count.items():
                highest[run] = sorted([*highest[run], n])[1:]
        for i, count in enumerate(counts):
            hits = sum(min(n, highest[run][0] if highest[run][1] == n else highest[run][1]) for run, n in count.items())
            total[i] += math.log(max(hits, 0.5) / max(sum(count.values()), 1)) / BLEU
    return float(np.exp(total).mean())
