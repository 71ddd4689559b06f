"""The measures of a set of records: one pass, bounded memory, the same figures in any order of the records."""

from __future__ import annotations

import hashlib
import heapq
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from speedlit.records import Prompt, Record
from speedlit.synthesis.quality import diversity, orders, probes
from speedlit.synthesis.quality.alarms import Figure, judged
from speedlit.synthesis.quality.faults import copies_query, has_meta_text, leaks_label, negative_is_like_positive
from speedlit.synthesis.quality.probes import share

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
        """Take one more record; with its prompt, topic, length and language are held against what was asked."""
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
        kept = [self._kept[key] for key in sorted(self._kept)]
        seen = sum(row.count for row in kept)
        again = repeated(kept, seen)
        records, every = [row.record for row in kept], [row.record for row in again]
        rows, every_row = ([(row.record, row.prompt) for row in part if row.prompt is not None] for part in (kept, again))
        topic_auc, off_topic = orders.topic_drift(rows)
        figures = {
            "label_leak": share([leaks_label(r) for r in every if r.kind == "classification"]),
            "negative_like_positive": share([negative_is_like_positive(r) for r in every if r.negatives]),
            "negative_is_a_positive": negative_is_a_positive(records),
            "copied_query": share([copies_query(r) for r in every if r.kind != "classification"]),
            "own_positive_first": probes.own_positive_first(records),
            "duplicates": Figure(1 - len(kept) / seen, seen) if seen else None,
            "near_duplicates": diversity.near_duplicates(records),
            "top_opening": diversity.top_opening(every),
            "meta_text": share([has_meta_text(r) for r in every]),
            "other_language": orders.other_language(every_row),
            "topic_auc": topic_auc,
            "off_topic": off_topic,
            "off_length": orders.off_length(every_row),
            "length_follows": orders.length_follows(rows),
            "length_auc": probes.length_auc(records),
            "bm25_auc": probes.bm25_auc(records),
            "instructions": orders.instructions(rows),
            "top_label": orders.top_label(every),
            "one_label_tasks": orders.one_label_tasks(records),
            "repaired": Figure(self._repaired / self._count, self._count) if self._count else None,
        }
        ratio = orders.length_ratio(rows)
        more = {**({"length_ratio": ratio} if ratio is not None else {}), **diversity.nearest(records)}
        return {"records": self._count, **more, **judged(figures, self._levels)}


def measure(records: Iterable[Record], levels: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All measures of some records at once."""
    measures = Measures(levels)
    for record in records:
        measures.add(record)
    return measures.result()


def repeated(kept: list[Kept], seen: int) -> list[Kept]:
    """Each text as often as it came, so that a refusal that came a hundred times weighs a hundred times; scaled down where that were too many."""
    scale = min(1.0, 2 * len(kept) / seen) if seen else 1.0
    return [row for row in kept for _ in range(max(1, round(row.count * scale)))]


def text_hash(record: Record) -> int:
    """64 bits of a record's text; case, blanks and punctuation aside."""
    text = "\n".join(record.fields.values()).casefold().translate(BLANKS)
    return int.from_bytes(hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest(), "big")


def negative_is_a_positive(records: list[Record]) -> Figure | None:
    """Share of negatives that are another record's positive: to be masked within a batch. Labels are left out: they recur by nature."""
    rows = [record for record in records if record.negatives and record.kind != "classification"]
    positives = {record.positive for record in rows}
    return share([any(negative in positives for negative in record.negatives) for record in rows])
