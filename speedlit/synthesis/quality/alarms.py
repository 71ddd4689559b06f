"""From which level a measure is an alarm, and what an alarm means.

A figure has sampling error, so it is an alarm only where its whole 95 % interval lies beyond the level: a few records raise none.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Z = 1.96


@dataclass
class Levels:
    """From which level a measure of the data is an alarm; null switches the alarm off (the figure is still reported). See docs/quality.md.

    Args:
        label_leak: highest share of classification texts that spell out a label.
        negative_like_positive: highest share of records with a negative that has nearly the positive's words.
        copied_query: highest share of records whose positive repeats the query.
        duplicates: highest share of exact copies.
        meta_text: highest share of records with refusals, chat marks or JSON keys in a text.
        repaired: highest share of answers whose JSON had to be mended.
        length_auc: how far from 0.5 the positive may be the longer one; beyond, length alone tells positive from negative.
    """

    label_leak: float | None = 0.02
    negative_like_positive: float | None = 0.01
    copied_query: float | None = 0.02
    duplicates: float | None = 0.01
    meta_text: float | None = 0.005
    repaired: float | None = 0.03
    length_auc: float | None = 0.05


@dataclass(frozen=True)
class Figure:
    """A measured value and from how many observations it is."""

    value: float
    n: int


@dataclass(frozen=True)
class Rule:
    """How a measure is held against its level (``most``, ``least``, ``even``: distance from 0.5) and what an alarm says."""

    how: str
    says: str


RULES = {
    "label_leak": Rule("most", "labels are spelled out in their texts"),
    "negative_like_positive": Rule("most", "negatives have nearly the words of their positive"),
    "copied_query": Rule("most", "positives repeat their query"),
    "duplicates": Rule("most", "records are exact copies of others"),
    "meta_text": Rule("most", "texts hold refusals, chat marks or JSON keys"),
    "repaired": Rule("most", "answers were no valid JSON and had to be mended"),
    "length_auc": Rule("even", "length alone tells positive from negative"),
}


def wilson(value: float, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson's: it holds for few observations and for shares near 0)."""
    if n == 0:
        return 0.0, 1.0
    middle, half = value + Z * Z / (2 * n), Z * math.sqrt(value * (1 - value) / n + Z * Z / (4 * n * n))
    return (middle - half) / (1 + Z * Z / n), (middle + half) / (1 + Z * Z / n)


def is_alarm(name: str, figure: Figure, level: float | None) -> bool:
    """Whether the figure's interval lies beyond the level."""
    if level is None or name not in RULES:
        return False
    low, high = wilson(figure.value, figure.n)
    how = RULES[name].how
    if how == "even":
        return low > 0.5 + level or high < 0.5 - level
    return low > level if how == "most" else high < level


def levels_of(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The defaults with a run's ``quality`` section laid over them."""
    return {**asdict(Levels()), **(settings or {})}


def alarmed(figures: Mapping[str, Figure], settings: Mapping[str, Any] | None) -> list[str]:
    """Names of the figures that are alarms."""
    levels = levels_of(settings)
    return [name for name, figure in figures.items() if is_alarm(name, figure, levels.get(name))]


def lines(measured: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> list[str]:
    """One line per alarm: the measure, its figure, its level, and what it means."""
    levels, out = levels_of(settings), []
    for name in measured.get("alarms", ()):
        rule, level = RULES[name], levels[name]
        bound = {"most": f"at most {level:g}", "least": f"at least {level:g}", "even": f"within {level:g} of 0.5"}[rule.how]
        out.append(f"{name} {measured[name]:g} (should be {bound}): {rule.says}")
    return out


def show(label: str, measured: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> None:
    """Print the alarms on standard error as soon as they are known."""
    for line in lines(measured, settings):
        print(f"  alarm, {label}: {line}", file=sys.stderr, flush=True)
