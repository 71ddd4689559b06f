"""Are the texts different from each other? Copies, openings, and figures of diversity that can be compared between generators."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from speedlit.records import Record
from speedlit.synthesis.filters import NearFilter, words
from speedlit.synthesis.quality.alarms import Figure, judged
from speedlit.synthesis.quality.lexical import hashed

SIZES = (100, 200, 500)  # records; figures of diversity depend on how many texts they are of, so they are compared at one size
NEAREST = 1000  # records whose nearest neighbour is looked for
OPENING = 6  # words
BLEU = 4  # longest runs of words that Self-BLEU compares
NEAR = 0.8  # Jaccard similarity of near-duplicates


def near_duplicates(records: Sequence[Record]) -> Figure | None:
    """Share of records that MinHash finds near to one before. Of a stream longer than the sample it is a lower bound."""
    near = NearFilter(NEAR)
    hits = [near.is_duplicate(f"{record.query}\n{record.positive}") for record in records]
    return Figure(sum(hits) / len(hits), len(hits)) if hits else None


def top_opening(records: Sequence[Record]) -> Figure | None:
    """Share of the most frequent opening (six words) among queries, or among positives where that is larger; labels aside."""
    found = []
    for texts in ([r.query for r in records], [r.positive for r in records if r.kind != "classification"]):
        counts = Counter(tuple(words(text)[:OPENING]) for text in texts)
        if counts:
            found.append(Figure(counts.most_common(1)[0][1] / len(texts), len(texts)))
    return max(found, key=lambda figure: figure.value, default=None)


def nearest(records: Sequence[Record]) -> dict[str, float]:
    """Median and 95th percentile of each record's TF-IDF cosine to its nearest neighbour."""
    if len(records) < 2:
        return {}
    rows = hashed([f"{record.query} {record.positive}" for record in records[:NEAREST]])
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -1)
    middle, high = np.quantile(cosines.max(1), [0.5, 0.95])
    return {"nearest_median": round(float(middle), 4), "nearest_95": round(float(high), 4)}


def diversity(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Per size that the records reach (and for all of them, where they are fewer): distinct pairs of words over all such pairs, entropy in
    bits of the first three words, and 1 - Self-BLEU."""
    sizes = [size for size in SIZES if size <= len(records)]
    out = {}
    for size in sizes:
        texts = [words(f"{r.query} {r.positive}")[:100] for r in records[:size]]
        figures = {"distinct_2": distinct_2(texts), "opening_entropy": opening_entropy(texts), "unlikeness": 1 - self_bleu(texts)}
        out[str(size)] = {name: round(value, 4) for name, value in figures.items()}
    return out


def distinct_2(texts: Sequence[Sequence[str]]) -> float:
    """Distinct pairs of neighbouring words over all such pairs."""
    pairs = Counter(pair for text in texts for pair in zip(text, text[1:], strict=False))
    return len(pairs) / max(sum(pairs.values()), 1)


def opening_entropy(texts: Sequence[Sequence[str]]) -> float:
    """Entropy in bits of the first three words: low where a writer always begins alike."""
    counts = Counter(tuple(text[:3]) for text in texts)
    return -sum(n / len(texts) * math.log2(n / len(texts)) for n in counts.values())


def self_bleu(texts: Sequence[Sequence[str]]) -> float:
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


def trend(before: Mapping[str, Any], after: Mapping[str, Any], levels: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """How much less diverse the texts have become from one result to another: ``collapse`` is the largest relative drop among the figures.

    They are compared at the largest size that both have. Where they share none, only ``alarms`` is given, and it is empty.
    """
    common = [size for size in map(str, SIZES) if size in before.get("diversity", {}) and size in after.get("diversity", {})]
    if not common:
        return {"alarms": []}
    old, new = before["diversity"][common[-1]], after["diversity"][common[-1]]
    drops = {f"drop of {name}": round(1 - new[name] / old[name], 4) if old[name] else 0.0 for name in old}
    size = int(common[-1])
    return {"compared": size, **drops, **judged({"collapse": Figure(max(0.0, *drops.values()), size)}, levels)}
