"""The scaling study's plot: scores over the size of the data, the fitted line, and the interval of its slope."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speedlit.errors import UsageError
from speedlit.files import read_object
from speedlit.report.figures import INK, draw, series
from speedlit.report.markup import figure, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUMMARY = Path("study", "scaling", "summary.json")


def scaling(root: Path) -> str:
    """The plot; "" where the run's root holds no such study.

    Raises:
        UsageError: the study's summary is damaged.
    """
    if not (root / SUMMARY).is_file():
        return ""
    found = read_object(root / SUMMARY, "cells", "a", "b", "interval", "r2", "p_curvature")
    cells = found["cells"]
    sound = isinstance(cells, list) and len(cells) > 1 and all(isinstance(cell, dict) for cell in cells)
    if not sound or not all(number(cell.get("n")) and cell["n"] > 0 and number(cell.get("score")) for cell in cells):
        raise UsageError(f"{root / SUMMARY} is damaged (cells holds no list of sizes n and scores); run the study again, or remove the file")
    ends = found["interval"] or [None, None]
    figures = [found[key] for key in ("r2", "p_curvature") if found[key] is not None]
    figures += [end for end in ends if end is not None] if isinstance(ends, list) and len(ends) == 2 else [None]
    if not all(map(number, (found["a"], found["b"], *figures))):
        raise UsageError(f"{root / SUMMARY} is damaged (a, b, interval, r2 or p_curvature is no number); run the study again, or remove the file")
    return figure(draw(lambda ax: paint(ax, found), words(found), "scaling", (6.2, 3.4)), words(found), "large") + note(
        "The band holds the lines through the centre of the cells whose slope is within the interval; a point is one size and seed."
    )


def number(value: object) -> bool:
    """Whether something read from a file can be drawn."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def paint(ax: Axes, found: Mapping[str, Any]) -> None:
    """Cells, line and band; the size on a logarithmic axis."""
    sizes = [cell["n"] for cell in found["cells"]]
    middle = sum(map(math.log10, sizes)) / len(sizes)
    logs = [math.log10(min(sizes)) + i * (math.log10(max(sizes)) - math.log10(min(sizes))) / 50 for i in range(51)]
    x, level = [10**log for log in logs], found["a"] + found["b"] * middle
    ax.plot(x, [found["a"] + found["b"] * log for log in logs], color=INK, linewidth=1.4)
    low, high = found["interval"] or (None, None)
    if low is not None and high is not None:
        ends = [(level + low * (log - middle), level + high * (log - middle)) for log in logs]
        ax.fill_between(x, [min(pair) for pair in ends], [max(pair) for pair in ends], color=series(0), alpha=0.18, linewidth=0)
    ax.plot(sizes, [cell["score"] for cell in found["cells"]], "o", color=series(0), markersize=4)
    ax.set_xscale("log")
    ax.set_xlabel("training samples")
    ax.set_ylabel("score")
    ticks = sorted(set(sizes))
    ax.set_xticks(ticks, [f"{size:,}" for size in ticks])
    ax.minorticks_off()


def words(found: Mapping[str, Any]) -> str:
    """The line and its tests in one sentence."""
    low, high = found["interval"] or (None, None)
    between = "" if low is None or high is None else f" [{low:.3g}, {high:.3g}] (95 %)"
    bend = "" if found["p_curvature"] is None else f", curvature p = {found['p_curvature']:.3g}"
    r2 = "" if found["r2"] is None else f"; R2 = {found['r2']:.3f}"
    verdict = f". The log-linear law: {found['verdict']}" if found.get("verdict") else ""
    return f"score = {found['a']:.4g} + {found['b']:.3g}{between} x log10 N{r2}{bend}{verdict}"
