"""Drawings by matplotlib as SVG that takes its colours and its type from the page, so that it is right in light, dark and print."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT = "#010101", "#020202"
SERIES = ("#030301", "#030302", "#030303", "#030304", "#030305")
COLOURS = {INK: "var(--ink)", FAINT: "var(--line)", **{key: f"var(--series-{i})" for i, key in enumerate(SERIES, 1)}}  # drawn in the keys
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "speedlit", "font.size": 9, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": FAINT,
    "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 8, "figure.constrained_layout.use": True,
}  # fmt: skip


def draw(paint: Callable[[Axes], None], label: str, name: str, size: tuple[float, float] = (3.7, 2.3)) -> str:
    """One set of axes as an inline SVG.

    Args:
        paint: draws on the axes, in INK, FAINT and SERIES only.
        label: what a screen reader says.
        name: unique on the page; keeps the ids of drawings apart.
        size: inches.
    """
    from io import StringIO

    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        sheet = Figure(figsize=size)
        FigureCanvasSVG(sheet)
        paint(sheet.add_subplot())
        out = StringIO()
        sheet.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return inline(out.getvalue(), label, name)


def inline(svg: str, label: str, name: str) -> str:
    """A stand-alone SVG made part of a page: no prologue, no addresses, no style of its own, ids apart from those of other drawings."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    svg = re.sub(r"<svg[^>]*>", f'<svg {box[0]} role="img" aria-label="{escape(label, quote=True)}">', svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for key, value in COLOURS.items():
        svg = svg.replace(key, value)
    return re.sub(r">\s+<", "><", svg)


def series(place: int) -> str:
    """The colour of the line at a place; they come round again."""
    return SERIES[place % len(SERIES)]
