"""The measures of a set of records: one pass, bounded memory, the same figures in any order of the records."""

from __future__ import annotations

import hashlib
import heapq
import math
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speedlit.records import Prompt, Record
from speedlit.synthesis.filters import words
from speedlit.synthesis.quality.alarms import Figure, alarmed
from speedlit.synthesis.quality.faults import copies_query, has_meta_text, leaks_label, negative_is_like_positive

SAMPLE = 5_000  # distinct texts that are measured; a share of 0.02 is then known to 0.004
BLANKS = str.maketrans(string.punctuation, " " * len(string.punctuation))


@dataclass
class Kept:
    """A record of the sample, its prompt where it was given, and how often its text came."""

    record: Record
    prompt: Prompt | None
    count: int = 1


class Measures:
    """Measures a stream of records.

    The texts with the smallest hashes are kept, each with the number of times it came. So the sample does not depend on the order of the
    records, copies of a text are in it together, and the share of copies is unbiased however long the stream is.

    Args:
        levels: the ``quality`` section of a run; missing keys take their defaults.
        sample: distinct texts to keep.
    """

    def __init__(self, levels: Mapping[str, Any] | None = None, sample: int = SAMPLE) -> None:
        self._levels, self._sample = levels, sample
        self._kept: dict[int, Kept] = {}
        self._heap: list[int] = []  # negated hashes: the largest comes first
        self._count = self._repaired = 0

    def add(self, record: Record, prompt: Prompt | None = None) -> None:
        """Take one more record; with its prompt, drift from the topic and asked lengths are measured too."""
        self._count += 1
        self._repaired += record.parsed_by == "repaired"
        key = text_hash(record)
        if key in self._kept:
            self._kept[key].count += 1
            return
        if len(self._heap) < self._sample:
            heapq.heappush(self._heap, -key)
        elif key < -self._heap[0]:
            del self._kept[-heapq.heappushpop(self._heap, -key)]
        else:
            return
        self._kept[key] = Kept(record, prompt)

    def result(self) -> dict[str, Any]:
        """All measures by name, how many records there were, and the names of the alarms; a measure without a base is left out."""
        rows = [self._kept[key] for key in sorted(self._kept)]
        records = [row.record for row in rows]
        seen = sum(row.count for row in rows)
        figures = {
            "label_leak": share([leaks_label(r) for r in records if r.kind == "classification"]),
            "negative_like_positive": share([negative_is_like_positive(r) for r in records if r.negatives]),
            "negative_is_a_positive": negative_is_a_positive(records),
            "copied_query": share([copies_query(r) for r in records if r.kind != "classification"]),
            "duplicates": Figure(1 - len(rows) / seen, seen) if seen else None,
            "meta_text": share([has_meta_text(r) for r in records]),
            "length_auc": length_auc(records),
            "overlap_auc": overlap_auc(records),
            "repaired": Figure(self._repaired / self._count, self._count) if self._count else None,
            "distinct_2": distinct_2(records),
            "opening_entropy": opening_entropy(records),
        }
        found = {name: figure for name, figure in figures.items() if figure is not None}
        return {"records": self._count, **{name: round(f.value, 4) for name, f in found.items()}, "alarms": alarmed(found, self._levels)}


def measure(records: Iterable[Record], levels: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All measures of some records at once."""
    measures = Measures(levels)
    for record in records:
        measures.add(record)
    return measures.result()


def text_hash(record: Record) -> int:
    """64 bits of a record's text; case, blanks and punctuation aside."""
    text = "\n".join(record.fields.values()).casefold().translate(BLANKS)
    return int.from_bytes(hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest(), "big")


def share(hits: Sequence[bool]) -> Figure | None:
    """Mean of hits, or None where there is nothing to look at."""
    return Figure(sum(hits) / len(hits), len(hits)) if hits else None


def negative_is_a_positive(records: Sequence[Record]) -> Figure | None:
    """Share of negatives that are another record's positive: to be masked within a batch. Labels are left out: they recur by nature."""
    rows = [record for record in records if record.negatives and record.kind != "classification"]
    positives = {record.positive for record in rows}
    return share([any(negative in positives for negative in record.negatives) for record in rows])


def distinct_2(records: Sequence[Record]) -> Figure | None:
    """Distinct pairs of neighbouring words over all such pairs, in query and positive."""
    pairs: Counter[tuple[str, str]] = Counter()
    for record in records:
        for text in (record.query, record.positive):
            tokens = words(text)
            pairs.update(zip(tokens, tokens[1:], strict=False))
    total = sum(pairs.values())
    return Figure(len(pairs) / total, total) if pairs else None


def opening_entropy(records: Sequence[Record]) -> Figure | None:
    """Entropy in bits of the first three words of the queries: low where a writer always begins alike."""
    counts = Counter(tuple(words(record.query)[:3]) for record in records)
    total = sum(counts.values())
    return Figure(-sum(n / total * math.log2(n / total) for n in counts.values()), total) if total else None


def length_auc(records: Sequence[Record]) -> Figure | None:
    """How often the positive is longer than the negative, ties half: far from 0.5, length alone tells them apart."""
    return auc([(len(words(r.positive)), len(words(n))) for r in records for n in r.negatives])


def overlap_auc(records: Sequence[Record]) -> Figure | None:
    """How often the positive shares more words with the query than the negative does, ties half: near 1, counting words would do."""
    pairs = [(set(words(r.query)), r.positive, n) for r in records for n in r.negatives if r.kind != "classification"]
    return auc([(len(query & set(words(p))), len(query & set(words(n)))) for query, p, n in pairs])


def auc(pairs: Sequence[tuple[float, float]]) -> Figure | None:
    """Share of pairs whose first number is larger, ties half."""
    return Figure(sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs), len(pairs)) if pairs else None
