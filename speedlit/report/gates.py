"""The quality gates: which measures of the data are alarms, what each means, and the table of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from speedlit.report.markup import folded, table
from speedlit.report.tables import answers_table, measures_table
from speedlit.synthesis.quality.alarms import RULES, bound, of_stages


def gates(summary: Mapping[str, Any]) -> str:
    """The alarms in words, then the tables; "" where nothing was measured."""
    measured = list(of_stages(summary["stages"]))
    if not measured:
        return ""
    return "\n".join(
        [alarms(summary), table(measures_table(measured, summary["levels"])), folded("What became of the answers", table(answers_table(measured)))]
    )


def alarms(summary: Mapping[str, Any]) -> str:
    """One line per measure that is an alarm somewhere, with the figure of each data set that raises it."""
    raised: dict[str, list[str]] = {}
    for stage, of, found in of_stages(summary["stages"]):
        for name in found["alarms"]:
            where = stage if stage == of else f"{stage}, {of}"
            raised.setdefault(name, []).append(f"{found[name]:g} ({where})")
    if not raised:
        return '<p class="verdict good">No measure is beyond its level.</p>'
    levels, total = summary["levels"], sum(map(len, raised.values()))
    items = "".join(
        f"<li><strong>{escape(name)}</strong>: {escape(RULES[name].says)}. Level: {escape(bound(name, levels[name]))}. Found: {escape('; '.join(where))}</li>"
        for name, where in sorted(raised.items(), key=lambda pair: -len(pair[1]))
    )
    title = f"{total} alarm{'s' if total > 1 else ''} of {len(raised)} measure{'s' if len(raised) > 1 else ''}"
    return f'<div class="verdict bad"><h3>{title}</h3><ul>{items}</ul></div>'
