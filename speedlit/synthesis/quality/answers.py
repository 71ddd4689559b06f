"""What became of the answers: usable, mended, unreadable, of another shape, cut by the token limit, or missing; per kind and model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from speedlit.synthesis.quality.alarms import Figure, judged

FATES = {"repaired": "repaired", "truncated": "truncated", "refusal": "refusal", "empty": "parse", "not_json": "parse"}
FATES |= dict.fromkeys(("strict", "tie", "best_equals_worst", "judge_disagrees", "judge_swap_unusable", "less_likely"), "strict")  # read, whatever it says


def fate(outcome: str) -> str:
    """``strict``, ``repaired``, ``parse``, ``schema``, ``refusal``, ``truncated`` or ``unanswered``, from how an answer was parsed or why it was rejected."""
    return "unanswered" if outcome.startswith("no_answer") else FATES.get(outcome, "schema")


class Answers:
    """Counts the answers of a stage.

    Args:
        levels: the ``quality`` section of a run; missing keys take their defaults.
    """

    def __init__(self, levels: Mapping[str, Any] | None = None) -> None:
        self._levels = levels
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, kind: str, model: str, outcome: str) -> None:
        """Count one answer by what its parsing gave: how it was parsed, or why it was rejected."""
        self._counts[f"{kind}, {model}"][fate(outcome)] += 1

    def result(self) -> dict[str, Any]:
        """Shares of all answers, the counts per kind and model, and the names of the alarms."""
        every = sum(self._counts.values(), Counter[str]())
        total = sum(every.values())
        got = total - every["unanswered"]
        figures = {
            "dropped": Figure((every["parse"] + every["schema"] + every["refusal"]) / got, got) if got else None,
            "repaired": Figure(every["repaired"] / got, got) if got else None,
            "truncated": Figure(every["truncated"] / got, got) if got else None,
            "unanswered": Figure(every["unanswered"] / total, total) if total else None,
        }
        return {"answers": {key: dict(sorted(counts.items())) for key, counts in sorted(self._counts.items())}, **judged(figures, self._levels)}
