"""What can be wrong with one record by itself: cheap predicates, used to measure a set and to drop from it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from speedlit.records import Record
from speedlit.synthesis.filters import words

META = re.compile(
    r"\[/?INST\]|<\|\w+\|>|</?s>|^\s*```|###\s*(instruction|response)\b"
    r"|\bas an ai\b|\bas a (large )?language model\b|\bi['’]?m sorry, (but )?i\b"
    r"|\bi (cannot|can['’]t|am unable to|am not able to)\b[^.]*\b(assist|help|comply|generate|fulfil)"
    r"|\bhere is (the|your|a) json\b|\b(user_query|positive_document|hard_negative_document|input_text|misleading_label)\b",
    re.IGNORECASE,
)
SHORT = 20  # words; a text of fewer has too few for one word's difference to mean nothing


def fault_of(record: Record, settings: Mapping[str, Any]) -> str:
    """Why a record is left out by itself, or "".

    Args:
        settings: the ``filters`` section of a run; a gate that is missing, false or null is open. A negative that equals the positive
            is never let through.
    """
    if record.positive in record.negatives:
        return "negative_equals_positive"
    if settings.get("meta_text") and has_meta_text(record):
        return "meta_text"
    if settings.get("label_leak") and leaks_label(record):
        return "label_leak"
    if (limit := settings.get("negative_like_positive")) and negative_is_like_positive(record, limit):
        return "negative_like_positive"
    if (limit := settings.get("copied_query")) and copies_query(record, limit):
        return "copied_query"
    return ""


def has_meta_text(record: Record) -> bool:
    """Refusals, chat marks or JSON keys inside a text."""
    return any(META.search(text) for text in record.fields.values())


def leaks_label(record: Record) -> bool:
    """Whether a text to be classified spells out its label or the misleading one; of ``colour: red`` the part behind the colon counts."""
    if record.kind != "classification":
        return False
    text = words(record.query)
    return any(contains(text, words(label.rsplit(":", 1)[-1])) for label in [record.positive, *record.negatives])


def contains(tokens: Sequence[str], part: Sequence[str]) -> bool:
    """Whether ``part`` stands in ``tokens`` as a run of whole words."""
    return bool(part) and f" {' '.join(part)} " in f" {' '.join(tokens)} "


def negative_is_like_positive(record: Record, limit: float = 0.8) -> bool:
    """Whether a negative has nearly the words of the positive: a false negative for anybody who reads both."""
    positive = words(record.positive)
    return any(alike(positive, words(negative), limit) for negative in record.negatives)


def alike(a: Sequence[str], b: Sequence[str], limit: float) -> bool:
    """Whether two texts agree at a Jaccard similarity of ``limit``. Below 20 words half the distance to 1 is asked for: there one word
    is the difference that a good hard negative makes."""
    if min(len(a), len(b)) < SHORT:
        limit = (1 + limit) / 2
    shorter, longer = sorted((len(a), len(b)))
    return shorter >= limit * longer and jaccard(a, b) >= limit


def jaccard(a: Sequence[str], b: Sequence[str]) -> float:
    """Jaccard similarity of two bags of words, repetitions counted."""
    left, right = Counter(a), Counter(b)
    union = sum((left | right).values())
    return sum((left & right).values()) / union if union else 1.0


def copies_query(record: Record, limit: float = 0.5) -> bool:
    """Whether the positive repeats the query in one run of words (labels and queries under four words aside).

    A long positive may not repeat more than ``limit`` of the query, in six words or more, nor all of it. Texts of one length, as in
    similarity and matching, say the same thing on purpose: there nine tenths of the query have to be repeated.
    """
    if record.kind == "classification":
        return False
    query, positive = words(record.query), words(record.positive)
    if len(query) < 4:
        return False
    if len(positive) >= 1.5 * len(query):
        run = min(max(int(limit * len(query)) + 1, 6), len(query))
    else:
        run = max(-(-9 * len(query) // 10), 4)
    return shares_run(query, positive, run)


def shares_run(a: Sequence[str], b: Sequence[str], size: int) -> bool:
    """Whether ``size`` words stand in both texts in one run."""
    text = f" {' '.join(b)} "
    return any(f" {' '.join(a[i : i + size])} " in text for i in range(len(a) - size + 1))
