"""Is the judge's choice about the records? Places, swapped orders, lengths, and choices that are none."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from speedlit.records import Preference, Record
from speedlit.synthesis.filters import words
from speedlit.synthesis.quality.alarms import Figure, judged

INDEX_ERRORS = ("index_out_of_range", "index_missing")
UNDECIDED = ("best_equals_worst", "tie")
EXPECTED = 5  # choices per place that the chi-square test needs


class JudgeMeasures:
    """Measures a stream of rankings.

    Args:
        levels: the ``quality`` section of a run; missing keys take their defaults.
    """

    def __init__(self, levels: Mapping[str, Any] | None = None) -> None:
        self._levels = levels
        self._failed: Counter[str] = Counter()
        self._chosen: dict[str, dict[int, float]] = {"best": defaultdict(float), "worst": defaultdict(float)}
        self._expected: dict[int, float] = defaultdict(float)
        self._rankings = 0
        self._longer = 0.0

    def add(self, preference: Preference, shown: Sequence[Record]) -> None:
        """Take one usable ranking, with the records in the order shown."""
        self._rankings += 1
        order = [record.id for record in shown]
        for place in range(len(order)):
            self._expected[place] += 1 / len(order)
        self._place("best", order.index(preference.chosen), preference.scores)
        self._place("worst", order.index(preference.rejected), preference.scores)
        best, worst = (length(shown[order.index(name)]) for name in (preference.chosen, preference.rejected))
        self._longer += 1.0 if best > worst else 0.5 if best == worst else 0.0

    def _place(self, name: str, place: int, scores: Sequence[float]) -> None:
        """Count the place of a choice; among equal scores the choice says nothing, so they share it."""
        equal = [i for i, score in enumerate(scores) if score == scores[place]] if scores else [place]
        for i in equal:
            self._chosen[name][i] += 1 / len(equal)

    def reject(self, reason: str) -> None:
        """Count a ranking that cannot be used."""
        self._failed[reason] += 1

    def result(self, swaps: Mapping[str, int] | None = None) -> dict[str, Any]:
        """The measures by name, the places that were chosen, and the names of the alarms.

        Args:
            swaps: how many rankings were ``checked`` in the reversed order, and how many of these ``flipped``.
        """
        swapped = swaps["checked"] if swaps else 0
        errors, undecided = (sum(self._failed[reason] for reason in reasons) for reasons in (INDEX_ERRORS, UNDECIDED))
        total = self._rankings + errors + undecided
        figures = {
            "judge_index_errors": Figure(errors / total, total) if total else None,
            "judge_undecided": Figure(undecided / total, total) if total else None,
            "judge_flips": Figure(swaps["flipped"] / swapped, swapped) if swaps and swapped else None,
            "judge_position": self._position(),
            "judge_longer": Figure(self._longer / self._rankings, self._rankings) if self._rankings else None,
        }
        places = {name: [round(counts[i], 1) for i in sorted(self._expected)] for name, counts in self._chosen.items()}
        return {"rankings": self._rankings, "places": places, **judged(figures, self._levels)}

    def _position(self) -> Figure | None:
        """The smaller p-value of two chi-square tests, doubled: best and worst fall on each place as often as candidates stood there."""
        from scipy.special import chdtrc

        places = [place for place in sorted(self._expected) if self._expected[place] >= EXPECTED]
        if len(places) < 2:
            return None
        p_values = []
        for counts in self._chosen.values():
            statistic = sum((counts[place] - self._expected[place]) ** 2 / self._expected[place] for place in places)
            p_values.append(float(chdtrc(len(places) - 1, statistic)))
        return Figure(min(2 * min(p_values), 1.0), self._rankings)


def length(record: Record) -> int:
    """Words of all fields."""
    return sum(len(words(text)) for text in record.fields.values())
