"""Do the records keep to their prompts? Topic, asked lengths, language; and are there enough instructions and labels to learn from?"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from speedlit.records import Prompt, Record
from speedlit.synthesis.filters import words
from speedlit.synthesis.quality.alarms import Figure
from speedlit.synthesis.quality.lexical import hashed

Rows = Sequence[tuple[Record, Prompt]]
COMPARED = 2000  # records and topics of the drift measure
FEW = 30  # records of a kind below which a correlation says nothing
PER_TASK = 5  # records of a task from which its labels are counted
SMALL_WORDS = """the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one you were all her
she there would their we him been has when who will no more if out so up said what its about than into them can only other time new some could these"""
ENGLISH = frozenset(SMALL_WORDS.split())
NUMBER = re.compile(r"\d+")


def topic_drift(rows: Rows) -> tuple[Figure | None, Figure | None]:
    """How surely records belong to their topic, by TF-IDF over words and letter triples.

    Each record is compared to its own topic (path and task sentence) and to those of all other topics of the sample.

    Returns:
        The AUC (chance that the own topic is the closer one, ties half), and the share of records off topic: a record that has nothing to
        do with its topic is as likely nearer as farther than the median of the others, so twice the share of those that are farther.
    """
    rows = rows[:COMPARED]
    topics = list(dict.fromkeys((prompt.topic, prompt.task) for _, prompt in rows))
    if len({path for path, _ in topics}) < 2:
        return None, None
    place = {topic: i for i, topic in enumerate(topics)}
    texts = ["\n".join(record.fields.values()) for record, _ in rows]
    found = hashed(texts + [path if task == path else f"{path} {task}" for path, task in ((t[0].replace("_", " "), t[1]) for t in topics)])
    cosines = found[: len(rows)] @ found[len(rows) :].T
    mine = np.array([place[prompt.topic, prompt.task] for _, prompt in rows])
    paths = np.array([path for path, _ in topics])
    other = paths[None, :] != paths[mine][:, None]
    own = cosines[np.arange(len(rows)), mine][:, None]
    ranks = (((cosines < own) + 0.5 * (cosines == own)) * other).sum(1) / other.sum(1)
    farther = float(((ranks < 0.5) + 0.5 * (ranks == 0.5)).mean())
    return Figure(float(ranks.mean()), len(rows)), Figure(min(2 * farther, 1.0), len(rows) // 2)


def bounds(value: Any) -> tuple[float, float] | None:
    """Fewest and most words that a knob's value asks for; None where it is about something else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value), math.inf
    numbers = [float(number) for number in NUMBER.findall(value)] if isinstance(value, str) else []
    if not numbers or "fact" in value:
        return None
    if len(numbers) > 1:
        return numbers[0], numbers[1]
    return (0.0, numbers[0]) if re.search(r"\b(fewer|less|most|under|below)\b", value) else (numbers[0], math.inf)


def asked(prompt: Prompt) -> list[tuple[str, tuple[float, float]]]:
    """``("query" | "documents", bounds)`` for each knob about lengths: ``query_length``, and ``num_words`` of the texts it is asked for."""
    found = []
    for knob, where in (("query_length", "query"), ("num_words", "query" if prompt.kind == "classification" else "documents")):
        limits = bounds(prompt.knobs.get(knob))
        if limits:
            found.append((where, limits))
    return found


def texts_at(record: Record, where: str) -> list[str]:
    """The query, or the positive and the negatives."""
    return [record.query] if where == "query" else [record.positive, *record.negatives]


def off_length(rows: Rows) -> Figure | None:
    """Share of records with a text under half of the fewest words asked, or over twice the most: writers are never exact, so only gross misses count."""
    hits = []
    for record, prompt in rows:
        limits = asked(prompt)
        if limits:
            sizes = [(len(words(text)), low, high) for where, (low, high) in limits for text in texts_at(record, where)]
            hits.append(any(size < low / 2 or size > 2 * high for size, low, high in sizes))
    return Figure(sum(hits) / len(hits), len(hits)) if hits else None


def length_ratio(rows: Rows) -> float | None:
    """Median of written over asked words, where a fewest number was asked."""
    ratios = [len(words(text)) / low for record, prompt in rows for where, (low, _) in asked(prompt) if low for text in texts_at(record, where)]
    return round(float(np.median(ratios)), 4) if ratios else None


def length_follows(rows: Rows) -> Figure | None:
    """Rank correlation of the number asked (``num_words``, or ``facts`` of the mini set) with the words written; mean over the kinds."""
    by_kind: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for record, prompt in rows:
        number = NUMBER.search(str(prompt.knobs.get("num_words", prompt.knobs.get("facts", ""))))
        if number:
            text = record.query if prompt.kind == "classification" else record.positive
            by_kind[prompt.kind].append((int(number[0]), len(words(text))))
    found, total = 0.0, 0
    for pairs in by_kind.values():
        numbers, sizes = zip(*pairs, strict=True)
        if len(pairs) >= FEW and len(set(numbers)) > 1:
            found += len(pairs) * (float(np.corrcoef(ranks(numbers), ranks(sizes))[0, 1]) if len(set(sizes)) > 1 else 0.0)
            total += len(pairs)
    return Figure(found / total, total) if total else None


def ranks(values: Sequence[int]) -> np.ndarray[Any, Any]:
    """Ranks of numbers, equal ones sharing their middle."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    middles: np.ndarray[Any, Any] = np.cumsum(counts) - (counts - 1) / 2
    return middles[places]


def other_language(rows: Rows) -> Figure | None:
    """Share of records that were asked for in English (knob ``language``) and are not: letters of another script, or hardly any of English's
    small words in a text of twenty words."""
    hits = [not_english("\n".join(record.fields.values())) for record, prompt in rows if prompt.knobs.get("language") == "English"]
    return Figure(sum(hits) / len(hits), len(hits)) if hits else None


def not_english(text: str) -> bool:
    """A guess by script and small words."""
    letters = [letter for letter in text if letter.isalpha()]
    if letters and sum(letter > "\u024f" for letter in letters) > 0.2 * len(letters):
        return True
    tokens = words(text)
    return len(tokens) >= 20 and sum(token in ENGLISH for token in tokens) < 0.1 * len(tokens)


def instructions(rows: Rows) -> Figure | None:
    """Distinct instructions of the kind that has the fewest; kinds with one instruction for all tasks, and small ones, are left out."""
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    for record, prompt in rows:
        if record.instruction == prompt.task:
            by_kind[prompt.kind][record.instruction] += 1
    found = [Figure(len(counts), total) for counts in by_kind.values() if (total := sum(counts.values())) >= 2 * PER_TASK * FEW]
    return min(found, key=lambda figure: figure.value, default=None)


def top_label(records: Sequence[Record]) -> Figure | None:
    """Share of the most frequent label."""
    counts = Counter(" ".join(words(record.positive)) for record in records if record.kind == "classification")
    total = sum(counts.values())
    return Figure(counts.most_common(1)[0][1] / total, total) if total else None


def one_label_tasks(records: Sequence[Record]) -> Figure | None:
    """Share of classification tasks (by instruction, five records and more) with a single label."""
    labels: dict[str, list[str]] = defaultdict(list)
    for record in records:
        if record.kind == "classification":
            labels[record.instruction].append(" ".join(words(record.positive)))
    hits = [len(set(found)) == 1 for found in labels.values() if len(found) >= PER_TASK]
    return Figure(sum(hits) / len(hits), len(hits)) if hits else None
