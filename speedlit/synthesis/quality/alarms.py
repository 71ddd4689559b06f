"""From which level a measure is an alarm, and what an alarm means.

A figure has sampling error, so it is an alarm only where its whole 95 % interval lies beyond the level: a few records raise none.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

Z = 1.96


@dataclass
class Levels:
    """From which level a measure of the data is an alarm; null switches the alarm off (the figure is still reported). See docs/quality.md.

    Args:
        label_leak: highest share of classification texts that spell out a label.
        negative_like_positive: highest share of records with a negative that has nearly the positive's words.
        false_negatives: highest share of triplets whose positive the judge does not prefer to the negative (measured where ``counts.inspected`` asks).
        copied_query: highest share of records whose positive repeats the query.
        own_positive_first: highest share of queries whose own positive word matching (BM25) puts first among all documents.
        duplicates: highest share of exact copies.
        near_duplicates: highest share of near-duplicates (MinHash) within the sample.
        removed: highest share of a source's records that the filters leave out.
        top_opening: highest share of texts that begin with the same six words.
        collapse: largest relative drop of a diversity figure from one generator to the next.
        dropped: highest share of answers that are no usable JSON record (cut and missing answers aside).
        repaired: highest share of answers whose JSON had to be mended.
        truncated: highest share of answers that the token limit cut.
        unanswered: highest share of questions without an answer.
        meta_text: highest share of records with refusals, chat marks or JSON keys in a text.
        other_language: highest share of records in another language or script where English was asked.
        topic_auc: lowest chance that a record is closer to its own topic than to another one.
        off_topic: highest share of records that are no closer to their own topic than to others.
        off_length: highest share of records with a text under half, or over twice, the words that were asked.
        length_follows: lowest rank correlation of asked and written length.
        length_auc: how far from 0.5 the positive may be the longer one; beyond, length alone tells positive from negative.
        bm25_auc: highest chance that word matching alone prefers the positive to the negative.
        instructions: lowest number of distinct instructions per kind that has one per task.
        top_label: highest share of one label.
        one_label_tasks: highest share of classification tasks (five records and more) with a single label.
        judge_index_errors: highest share of rankings that name a candidate which isn't there.
        judge_undecided: highest share of rankings without a best and a worst candidate.
        judge_flips: highest share of rankings that change when the order is swapped (measured where the swap is asked for).
        judge_position: lowest p-value of "best and worst are found in all places alike" (chi-square).
        judge_longer: how far from 0.5 the longer record may win.
    """

    label_leak: float | None = 0.02
    negative_like_positive: float | None = 0.01
    false_negatives: float | None = 0.05
    copied_query: float | None = 0.02
    own_positive_first: float | None = 0.95
    duplicates: float | None = 0.01
    near_duplicates: float | None = 0.03
    removed: float | None = 0.3
    top_opening: float | None = 0.02
    collapse: float | None = 0.1
    dropped: float | None = 0.03
    repaired: float | None = 0.03
    truncated: float | None = 0.01
    unanswered: float | None = 0.01
    meta_text: float | None = 0.005
    other_language: float | None = 0.02
    topic_auc: float | None = 0.8
    off_topic: float | None = 0.03
    off_length: float | None = 0.03
    length_follows: float | None = 0.3
    length_auc: float | None = 0.05
    bm25_auc: float | None = 0.9
    instructions: float | None = 20
    top_label: float | None = 0.2
    one_label_tasks: float | None = 0.3
    judge_index_errors: float | None = 0.0
    judge_undecided: float | None = 0.5
    judge_flips: float | None = 0.1
    judge_position: float | None = 0.01
    judge_longer: float | None = 0.2


@dataclass(frozen=True)
class Figure:
    """A measured value, from how many observations it is, and its 95 % interval where that is not the interval of a share."""

    value: float
    n: int
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        return wilson(self.value, self.n) if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Rule:
    """How a measure is held against its level, and what an alarm says.

    ``most`` and ``least`` compare the end of the figure's interval, ``even`` its distance from 0.5; ``fewest`` compares the bare value.
    """

    how: str
    says: str


RULES = {
    "label_leak": Rule("most", "labels are spelled out in their texts"),
    "negative_like_positive": Rule("most", "negatives have nearly the words of their positive"),
    "false_negatives": Rule("most", "the judge does not prefer the positive to the negative"),
    "copied_query": Rule("most", "positives repeat their query"),
    "own_positive_first": Rule("most", "word matching finds nearly every positive"),
    "duplicates": Rule("most", "records are exact copies of others"),
    "near_duplicates": Rule("most", "records nearly repeat others"),
    "removed": Rule("most", "the filters leave out much of what was paid for"),
    "top_opening": Rule("most", "many texts begin with the same words"),
    "collapse": Rule("most", "texts have become more alike"),
    "dropped": Rule("most", "answers are no usable JSON"),
    "repaired": Rule("most", "answers were no valid JSON and had to be mended"),
    "truncated": Rule("most", "the token limit cuts answers"),
    "unanswered": Rule("most", "questions got no answer"),
    "meta_text": Rule("most", "texts hold refusals, chat marks or JSON keys"),
    "other_language": Rule("most", "texts are not in the language that was asked"),
    "topic_auc": Rule("least", "records are hardly closer to their topic than to another"),
    "off_topic": Rule("most", "records do not belong to their topic"),
    "off_length": Rule("most", "texts are far from the length that was asked"),
    "length_follows": Rule("least", "lengths do not follow what was asked"),
    "length_auc": Rule("even", "length alone tells positive from negative"),
    "bm25_auc": Rule("most", "word matching alone tells positive from negative"),
    "instructions": Rule("fewest", "there are too few different instructions"),
    "top_label": Rule("most", "one label has too large a share"),
    "one_label_tasks": Rule("most", "tasks have one label only"),
    "judge_index_errors": Rule("most", "the judge names candidates that are not there"),
    "judge_undecided": Rule("most", "the judge finds no best and worst"),
    "judge_flips": Rule("most", "the judge's choice depends on the order shown"),
    "judge_position": Rule("fewest", "the judge favours places"),
    "judge_longer": Rule("even", "the judge goes by length"),
}
BOUNDS = {"most": "at most", "least": "at least", "fewest": "at least", "even": "off 0.5 by at most"}


def wilson(value: float, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson's: it holds for few observations and for shares near 0)."""
    if n == 0:
        return 0.0, 1.0
    middle, half = value + Z * Z / (2 * n), Z * math.sqrt(max(value * (1 - value), 0) / n + Z * Z / (4 * n * n))
    return (middle - half) / (1 + Z * Z / n), (middle + half) / (1 + Z * Z / n)


def is_alarm(name: str, figure: Figure, level: float | None) -> bool:
    """Whether the figure, with its interval, lies beyond the level."""
    if level is None or name not in RULES:
        return False
    low, high = figure.interval
    beyond = {
        "most": figure.value > level and low > level,
        "least": high < level,
        "even": low > 0.5 + level or high < 0.5 - level,
        "fewest": figure.value < level,
    }
    return beyond[RULES[name].how]


def levels_of(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The defaults with a run's ``quality`` section laid over them."""
    return {**asdict(Levels()), **(settings or {})}


def judged(figures: Mapping[str, Figure | None], settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The figures as plain numbers, and the names of those that are alarms; a measure without a base is left out."""
    levels, found = levels_of(settings), {name: figure for name, figure in figures.items() if figure is not None}
    alarms = [name for name, figure in found.items() if is_alarm(name, figure, levels.get(name))]
    return {**{name: round(figure.value, 4) for name, figure in found.items()}, "alarms": alarms}


def merge(*measured: Mapping[str, Any]) -> dict[str, Any]:
    """Several results as one; a figure that two of them have is the last one's."""
    out: dict[str, Any] = {}
    for part in measured:
        kept = [name for name in out.get("alarms", []) if name not in part]
        out.update({**part, "alarms": [*kept, *part["alarms"]]})
    return out


def of_stages(stages: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Stage, what was measured, and the result, from the ledgers of finished stages."""
    for stage, ledger in stages.items():
        for of, measured in ledger.get("notes", {}).get("quality", {}).items():
            yield stage, of, measured


def bound(name: str, level: float | None) -> str:
    """A level in words; "" where it is switched off."""
    return "" if level is None else f"{BOUNDS[RULES[name].how]} {level:g}"


def lines(measured: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> list[str]:
    """One line per alarm: the measure, its figure, its level, and what it means."""
    levels = levels_of(settings)
    return [f"{name} {measured[name]:g} (level: {bound(name, levels[name])}): {RULES[name].says}" for name in measured.get("alarms", ())]


def show(label: str, measured: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> None:
    """Print the alarms on standard error as soon as they are known; a set without any says so in one line."""
    for line in lines(measured, settings) or ["no alarm"]:
        print(f"  quality of {label}: {line}", file=sys.stderr, flush=True)
