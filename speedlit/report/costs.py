"""What a sample cost, drawn beside the paper and the E5-Mistral route."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from speedlit.report.figures import INK, draw, series
from speedlit.report.markup import figure, folded, table
from speedlit.report.tables import cost_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def costs(found: Mapping[str, Any] | None) -> str:
    """Two drawings and the ledger; "" before there are accepted samples."""
    if not found or not found["accepted"]:
        return ""
    rows = {"this run": found["total"], "without brainstorming": found["without_brainstorming"], "the paper": found["paper"], "E5-Mistral route": found["e5"]}
    each = {name: row["per_accepted"] for name, row in rows.items()}
    drawn = "".join(bars({name: row[of] for name, row in each.items()}, of) for of in ("calls", "tokens"))
    return f'<div class="figures">{drawn}</div>\n' + folded("The ledger, stage by stage, and its caveats", table(cost_table(dict(found))))


def bars(values: Mapping[str, float], of: str) -> str:
    """One figure per accepted sample, for each route."""

    def paint(ax: Axes) -> None:
        names, top = list(values), max(values.values()) or 1.0
        ax.barh(names, list(values.values()), color=[series(0), series(0), series(1), series(2)], height=0.6)
        for place, value in enumerate(values.values()):
            ax.text(value + top / 60, place, f"{value:,.3g}" if value < 1000 else f"{value:,.0f}", va="center", color=INK)
        ax.set_xlim(0, top * 1.22)
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.tick_params(left=False)

    caption = f"teacher {of} per accepted sample"
    label = f"{caption}. " + "; ".join(f"{name}: {value:.3g}" for name, value in values.items())
    return figure(draw(paint, label, f"cost-{of}", (4.6, 1.9)), caption)
