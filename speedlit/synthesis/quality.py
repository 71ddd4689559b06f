"""Measures of synthetic data, each with the level from which it is an alarm. Pure functions over records.

None of them knows the truth; together they show what goes wrong most often: leaked labels, copied queries, negatives that are none,
copies, collapse, answers that talk about themselves, and triplets that their lengths or shared words alone give away.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from speedlit.records import Record
from speedlit.synthesis.filters import words

SAMPLE = 20_000  # records that are measured; a figure needs no more
META = re.compile(
    r"\[/?INST\]|<\|\w+\|>|</?s>|\bas an ai\b|\bi (cannot|can't|am unable to)\b[^.]*\b(assist|help|comply|generate)\b|\bhere is (the|your) json\b"
    r"|\b(user_query|positive_document|hard_negative_document|misleading_label)\b",
    re.IGNORECASE,
)
ALARMS = {  # measure -> (lowest, highest) that is no alarm
    "label_leak": (0.0, 0.02),
    "negative_like_positive": (0.0, 0.0),
    "copied_query": (0.0, 0.02),
    "duplicates": (0.0, 0.01),
    "meta_text": (0.0, 0.005),
    "length_auc": (0.45, 0.55),
    "repaired": (0.0, 0.05),
}


def measure(records: Sequence[Record]) -> dict[str, Any]:
    """All measures of some records, and the names of those that raise an alarm; measures without a base are left out."""
    step = max(1, math.ceil(len(records) / SAMPLE))
    records = records[::step]
    found = {
        "records": len(records),
        "label_leak": label_leak(records),
        "negative_like_positive": negative_like_positive(records),
        "negative_is_a_positive": negative_is_a_positive(records),
        "copied_query": copied_query(records),
        "duplicates": duplicates(records),
        "distinct_2": distinct_2(records),
        "opening_entropy": opening_entropy(records),
        "meta_text": meta_text(records),
        "length_auc": length_auc(records),
        "overlap_auc": overlap_auc(records),
        "repaired": share([record.parsed_by == "repaired" for record in records]),
    }
    values = {name: round(value, 4) for name, value in found.items() if value is not None}
    alarms = [name for name, (low, high) in ALARMS.items() if name in values and not low <= values[name] <= high]
    return {**values, "alarms": alarms}


def share(hits: Sequence[bool]) -> float | None:
    """Mean of hits, or None where there is nothing to look at."""
    return sum(hits) / len(hits) if hits else None


def label_leak(records: Sequence[Record]) -> float | None:
    """Share of classification texts that spell out their label or the misleading one."""
    rows = [record for record in records if record.kind == "classification"]
    return share([any(contains(words(r.query), words(label)) for label in [r.positive, *r.negatives]) for r in rows])


def contains(tokens: Sequence[str], part: Sequence[str]) -> bool:
    """Whether ``part`` stands in ``tokens`` as a run of whole words."""
    return bool(part) and f" {' '.join(part)} " in f" {' '.join(tokens)} "


def negative_like_positive(records: Sequence[Record]) -> float | None:
    """Share of records with a negative whose words agree with the positive's at a Jaccard similarity of 0.8 or more."""
    rows = [record for record in records if record.negatives]
    return share([any(jaccard(words(r.positive), words(n)) >= 0.8 for n in r.negatives) for r in rows])


def jaccard(a: Sequence[str], b: Sequence[str]) -> float:
    """Jaccard similarity of two bags of words, repetitions counted."""
    left, right = Counter(a), Counter(b)
    union = sum((left | right).values())
    return sum((left & right).values()) / union if union else 1.0


def negative_is_a_positive(records: Sequence[Record]) -> float | None:
    """Share of negatives that are another record's positive: to be masked within a batch. Labels are left out: they recur by nature."""
    rows = [record for record in records if record.negatives and record.kind != "classification"]
    positives = {record.positive for record in rows}
    return share([any(negative in positives for negative in record.negatives) for record in rows])


def copied_query(records: Sequence[Record]) -> float | None:
    """Share of records whose positive repeats more than half of the query in one run of words (queries of four words and more)."""
    rows = [(words(r.query), words(r.positive)) for r in records if r.kind != "classification"]
    return share([longest_run(query, positive) > len(query) / 2 for query, positive in rows if len(query) >= 4])


def longest_run(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest run of words that two texts share."""
    best, previous = 0, [0] * (len(b) + 1)
    for left in a:
        current = [0] * (len(b) + 1)
        for j, right in enumerate(b, 1):
            if left == right:
                current[j] = previous[j - 1] + 1
                best = max(best, current[j])
        previous = current
    return best


def duplicates(records: Sequence[Record]) -> float | None:
    """Share of records whose normalised text occurred before."""
    texts = [" ".join(words(" ".join(record.fields.values()))) for record in records]
    return 1 - len(set(texts)) / len(texts) if texts else None


def distinct_2(records: Sequence[Record]) -> float | None:
    """Distinct pairs of neighbouring words over all such pairs, in query and positive."""
    pairs: Counter[tuple[str, str]] = Counter()
    for record in records:
        for text in (record.query, record.positive):
            tokens = words(text)
            pairs.update(zip(tokens, tokens[1:], strict=False))
    return len(pairs) / sum(pairs.values()) if pairs else None


def opening_entropy(records: Sequence[Record]) -> float | None:
    """Entropy in bits of the first three words of the queries: low where a writer always begins alike."""
    counts = Counter(tuple(words(record.query)[:3]) for record in records)
    total = sum(counts.values())
    return -sum(n / total * math.log2(n / total) for n in counts.values()) if total else None


def meta_text(records: Sequence[Record]) -> float | None:
    """Share of records with refusals, chat marks or JSON keys inside their texts."""
    return share([any(META.search(text) for text in record.fields.values()) for record in records])


def length_auc(records: Sequence[Record]) -> float | None:
    """How often the positive is longer than the negative, ties half: far from 0.5, length alone tells them apart."""
    return auc([(len(words(r.positive)), len(words(n))) for r in records for n in r.negatives])


def overlap_auc(records: Sequence[Record]) -> float | None:
    """How often the positive shares more words with the query than the negative does, ties half: near 1, counting words would do."""
    pairs = [(set(words(r.query)), r.positive, n) for r in records for n in r.negatives if r.kind != "classification"]
    return auc([(len(query & set(words(p))), len(query & set(words(n)))) for query, p, n in pairs])


def auc(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Share of pairs whose first number is larger, ties half."""
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs) if pairs else None
