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
from speedlit.synthesis.quality.alarms import Figure, Z
from speedlit.synthesis.quality.lexical import hashed

Rows = Sequence[tuple[Record, Prompt]]
COMPARED = 2000  # records of the drift measure
BRANCH = 8  # records that make a branch of the topics
FEW = 30  # records of a kind below which a correlation says nothing
BEGINNING = 600  # characters by which a language is told
PER_TASK = 5  # records of a task from which its labels are counted
SMALL_WORDS = """the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one you were all her
she there would their we him been has when who will no more if out so up said what its about than into them can only other time new some could these"""
ENGLISH = frozenset(SMALL_WORDS.split())
NUMBER = re.compile(r"\d+")


def topic_drift(rows: Rows) -> tuple[Figure | None, Figure | None]:
    """How surely records belong to their topic, by the words they share.

    A text seldom names its topic: one about tomatoes is filed under vegetables. So a branch of the topics is known by its paths, by the
    task sentences, and by the words of its other records (never the record's own). Each record is compared to its branch and to all others.

    Returns:
        The AUC (chance that the own branch is the closer one, ties half), and the share of records off topic: a record that has nothing to
        do with its branch is as likely nearer as farther than the middle of the others, so twice the share of those that are farther.
    """
    rows = rows[:COMPARED]
    names = branches([prompt.topic for _, prompt in rows])
    places = {name: i for i, name in enumerate(dict.fromkeys(names))}
    if len(places) < 2:
        return None, None
    orders = [f"{prompt.topic.replace('_', ' ')} {prompt.task}" for _, prompt in rows]
    found = hashed(["\n".join(record.fields.values()) for record, _ in rows] + orders)
    texts, orders_at = found[: len(rows)], found[len(rows) :]
    mine = np.array([places[name] for name in names])
    profiles = np.zeros((len(places), texts.shape[1]), np.float32)
    np.add.at(profiles, mine, texts)
    np.add.at(profiles, mine, orders_at)
    products, every = texts @ profiles.T, np.arange(len(rows))
    squares = (profiles**2).sum(1)
    own = products[every, mine]
    without = (own - 1) / np.sqrt(np.maximum(squares[mine] - 2 * own + 1, 1e-9))  # the record itself taken out of its branch
    cosines = products / np.sqrt(squares)
    cosines[every, mine] = np.nan
    nearer = (cosines < without[:, None]).sum(1) + 0.5 * (cosines == without[:, None]).sum(1)
    ranks = nearer / (len(places) - 1)
    farther = float(((ranks < 0.5) + 0.5 * (ranks == 0.5)).mean())
    return Figure(float(ranks.mean()), len(rows)), Figure(min(2 * farther, 1.0), len(rows) // 2)


def branches(topics: Sequence[str]) -> list[str]:
    """For each topic the deepest beginning of its path that enough of the topics share."""
    starts = [["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)] for parts in (topic.split("/") for topic in topics)]
    counts = Counter(start for of_topic in starts for start in of_topic)
    return [next((start for start in reversed(of_topic) if counts[start] >= BRANCH), of_topic[0]) for of_topic in starts]


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
    for knob, where in (("query_length", "query"), ("num_words", main_text(prompt.kind))):
        limits = bounds(prompt.knobs.get(knob))
        if limits:
            found.append((where, limits))
    return found


def main_text(kind: str) -> str:
    """Where the long texts of a kind are."""
    return "query" if kind == "classification" else "documents"


def texts_at(record: Record, where: str) -> list[str]:
    """The query, or the positive and the negatives."""
    return [record.query] if where == "query" else [record.positive, *record.negatives]


def off_length(rows: Rows) -> Figure | None:
    """Share of records with a text under half of the fewest words asked, or over twice the most: writers are never exact, so only gross misses count.

    Where a prompt counts in facts (the mini set), the usual length of its kind and number of facts is what is asked.
    """
    usual, hits = usual_lengths(rows), []
    for record, prompt in rows:
        limits = asked(prompt)
        if not limits and (key := facts(prompt)) in usual:
            limits = [(main_text(prompt.kind), (usual[key], usual[key]))]
        if limits:
            sizes = [(len(words(text)), low, high) for where, (low, high) in limits for text in texts_at(record, where)]
            hits.append(any(size < low / 2 or size > 2 * high for size, low, high in sizes))
    return Figure(sum(hits) / len(hits), len(hits)) if hits else None


def facts(prompt: Prompt) -> tuple[str, str] | None:
    """Kind and asked number of facts, or None."""
    number = NUMBER.search(str(prompt.knobs.get("facts", "")))
    return (prompt.kind, number[0]) if number else None


def usual_lengths(rows: Rows) -> dict[tuple[str, str] | None, float]:
    """Median words per kind and asked number of facts, where there are enough records."""
    found: dict[tuple[str, str] | None, list[int]] = defaultdict(list)
    for record, prompt in rows:
        if key := facts(prompt):
            found[key] += [len(words(text)) for text in texts_at(record, main_text(prompt.kind))]
    return {key: float(np.median(sizes)) for key, sizes in found.items() if len(sizes) >= FEW}


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
            by_kind[prompt.kind].append((int(number[0]), len(words(texts_at(record, main_text(prompt.kind))[0]))))
    found, total = 0.0, 0
    for pairs in by_kind.values():
        numbers, sizes = zip(*pairs, strict=True)
        if len(pairs) >= FEW and len(set(numbers)) > 1:
            found += len(pairs) * (float(np.corrcoef(ranks(numbers), ranks(sizes))[0, 1]) if len(set(sizes)) > 1 else 0.0)
            total += len(pairs)
    if not total:
        return None
    mean, half = found / total, Z / math.sqrt(max(total - 3, 1))
    middle = math.atanh(max(min(mean, 0.999), -0.999))  # Fisher's interval of a correlation
    return Figure(mean, total, math.tanh(middle - half), math.tanh(middle + half))


def ranks(values: Sequence[int]) -> np.ndarray[Any, Any]:
    """Ranks of numbers, equal ones sharing their middle."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    middles: np.ndarray[Any, Any] = np.cumsum(counts) - (counts - 1) / 2
    return middles[places]


def other_language(rows: Rows) -> Figure | None:
    """Share of records that were asked for in English (knob ``language``) and hold a text that is not: letters of another script, or hardly
    any of English's small words among twenty words."""
    hits = [any(map(not_english, record.fields.values())) for record, prompt in rows if prompt.knobs.get("language") == "English"]
    return Figure(sum(hits) / len(hits), len(hits)) if hits else None


def not_english(text: str) -> bool:
    """A guess by script and small words, from the beginning of a text."""
    text = text[:BEGINNING]
    if not text.isascii():
        letters = [letter for letter in text if letter.isalpha()]
        if sum(letter > "\u024f" for letter in letters) > 0.2 * len(letters):  # behind the last Latin letter of European languages
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
