"""Are the texts different from each other? Near-duplicates, openings, nearest neighbours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from speedlit.records import Record
from speedlit.synthesis.filters import NearFilter, words
from speedlit.synthesis.quality.alarms import Figure
from speedlit.synthesis.quality.lexical import hashed

NEAREST = 1000  # records whose nearest neighbour is looked for
OPENING = 6  # words
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
