"""The loop as a picture: what passes from stage to stage, and what making it cost. Drawn twice, for wide and for narrow screens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

# Where the stages stand, in columns and rows; every edge is a straight line.
WIDE = {
    "topics": (0, 0), "tasks": (1, 0), "seed": (2, 0), "junior": (3, 0), "candidates": (4, 0), "preferences": (5, 0), "senior": (6, 0),
    "revisions": (4, 1), "revisor": (5, 1), "synthesis": (6, 2), "refinement": (5, 2), "dataset": (4, 2), "embedder": (3, 2), "evaluation": (2, 2),
}  # fmt: skip
NARROW = {
    "topics": (0, 0), "tasks": (0, 1), "seed": (0, 2), "junior": (0, 3), "candidates": (0, 4), "preferences": (0, 5), "senior": (0, 6),
    "revisions": (1, 4), "revisor": (1, 5), "synthesis": (0, 7), "refinement": (1, 7), "dataset": (1, 8), "embedder": (0, 8), "evaluation": (0, 9),
}  # fmt: skip
EDGES = [
    ("topics", "tasks"), ("tasks", "seed"), ("seed", "junior"), ("junior", "candidates"), ("candidates", "preferences"), ("candidates", "revisions"),
    ("preferences", "senior"), ("revisions", "revisor"), ("senior", "synthesis"), ("revisor", "refinement"), ("synthesis", "refinement"),
    ("refinement", "dataset"), ("dataset", "embedder"), ("embedder", "evaluation"),
]  # fmt: skip
MADE = {"topics": "topics", "seed": "records", "candidates": "answers", "synthesis": "records", "refinement": "records", "dataset": "triplets"}
WHO = {
    **dict.fromkeys(("tasks", "seed", "preferences", "revisions"), "teacher"),
    **dict.fromkeys(("junior", "senior", "revisor", "embedder"), "training"),
    **dict.fromkeys(("candidates", "synthesis", "refinement"), "own model"),
}
SAYS = {"teacher": "asks the teacher", "training": "trains a model", "own model": "a trained model writes", "": "filters, measures"}
BOX = (94, 36)


@dataclass(frozen=True)
class Layout:
    """Where things stand, in pixels."""

    name: str
    places: Mapping[str, tuple[int, int]]
    pitch: tuple[int, int]
    size: tuple[int, int]

    def corner(self, stage: str) -> tuple[int, int]:
        """The upper left corner of a stage's box."""
        column, row = self.places[stage]
        return 6 + column * self.pitch[0], 10 + row * self.pitch[1]


LAYOUTS = (Layout("wide", WIDE, (186, 104), (1240, 262)), Layout("narrow", NARROW, (196, 92), (356, 886)))


def loop_picture(stages: Mapping[str, Any], costs: Mapping[str, Any] | None, alarms: Sequence[Mapping[str, Any]] = ()) -> str:
    """Both drawings (the page shows the one that fits) and the key to their colours; the stages of ``alarms`` are marked with how many they have."""
    raised = Counter(alarm["stage"] for alarm in alarms)
    drawings = "".join(drawing(layout, stages, costs, raised) for layout in LAYOUTS)
    key = "".join(f'<li><span class="swatch {css(who)}"></span>{escape(says)}</li>' for who, says in SAYS.items())
    key += '<li><span class="swatch alarms"></span>alarms of its quality gates</li>' if raised else ""
    return f'<figure class="loop">{drawings}<figcaption><ul class="key">{key}</ul></figcaption></figure>'


def drawing(layout: Layout, stages: Mapping[str, Any], costs: Mapping[str, Any] | None, raised: Mapping[str, int]) -> str:
    """One drawing; a stage that is not finished is drawn pale."""
    width, height = layout.size
    said = {name: (made(name, stages), cost(name, stages, costs), f"{raised[name]} alarms" if name in raised else "") for name in WIDE if name in stages}
    label = "The loop. " + "; ".join(f"{name}: {', '.join(filter(None, words))}" for name, words in said.items())
    tip = 'viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z"/>'
    arrow = f'<defs><marker id="{layout.name}-tip" {tip}</marker></defs>'
    parts = [edge(layout, start, end, stages, costs) for start, end in EDGES] + [
        box(layout, stage, stage in stages, raised.get(stage, 0)) for stage in layout.places
    ]
    attributes = f'class="{layout.name}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label, quote=True)}"'
    return f"<svg {attributes}>{arrow}{''.join(parts)}</svg>"


def box(layout: Layout, stage: str, finished: bool, alarms: int) -> str:
    """A stage, with the number of its alarms."""
    x, y = layout.corner(stage)
    width, height = BOX
    shape = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'
    style = f"stage {css(WHO.get(stage, ''))}{'' if finished else ' open'}"
    mark = f'<g class="alarms"><circle cx="{x + width - 4}" cy="{y + 3}" r="9"/><text x="{x + width - 4}" y="{y + 7}">{alarms}</text></g>' if alarms else ""
    return f'<g class="{style}">{shape}<text x="{x + width / 2:g}" y="{y + height / 2 + 4:g}">{stage}</text>{mark}</g>'


def edge(layout: Layout, start: str, end: str, stages: Mapping[str, Any], costs: Mapping[str, Any] | None) -> str:
    """An arrow with what passes along it, and what that cost."""
    (x1, y1), (x2, y2), (width, height) = layout.corner(start), layout.corner(end), BOX
    count = made(start, stages)
    spent = cost(start, stages, costs).split(", ") if start in stages else []
    if start == "candidates" and end == "revisions":
        spent = []  # said once, on the way to the judge
    if y1 == y2:
        ways = (x1 + width, x2 - 2) if x2 > x1 else (x1, x2 + width + 2)
        middle, line = sum(ways) / 2, y1 + height / 2
        texts = [(middle, line - 6, count)] + [(middle, line + 14 + 13 * i, text) for i, text in enumerate(spent)]
        path, anchor = f"M{ways[0]} {line}H{ways[1]}", "middle"
    else:
        middle, top = x1 + width / 2, y1 + height
        lines = [text for text in (count, *spent) if text]
        line = top + (y2 - top) / 2 + 4 - 13 * (len(lines) - 1) / 2
        texts = [(middle + 8, line + 13 * i, text) for i, text in enumerate(lines)]
        path, anchor = f"M{middle} {top}V{y2 - 2}", "start"
    words = "".join(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{bold(text == count)}>{escape(text)}</text>' for x, y, text in texts if text)
    return f'<g class="edge"><path d="{path}" marker-end="url(#{layout.name}-tip)"/>{words}</g>'


def bold(yes: bool) -> str:
    """Counts stand out from costs."""
    return ' class="count"' if yes else ""


def made(stage: str, stages: Mapping[str, Any]) -> str:
    """What a stage hands on, in words."""
    if stage not in stages:
        return ""
    found = stages[stage]
    if stage == "tasks":
        return f"{short(found['notes'].get('tasks', found['accepted']))} tasks"
    if stage == "dataset":
        refined = found["notes"].get("refined", {})
        return f"{short(refined.get('triplets', refined.get('records', found['accepted'])))} triplets"
    if stage in ("preferences", "revisions"):
        return f"{short(found['accepted'])} {'rankings' if stage == 'preferences' else 'revisions'}"
    if WHO.get(stage) == "training":
        fits = found["notes"].get("fits", [])
        return f"{short(fits[0]['steps'])} steps" if fits else "model"
    return f"{short(found['accepted'])} {MADE[stage]}" if stage in MADE else ""


def cost(stage: str, stages: Mapping[str, Any], costs: Mapping[str, Any] | None) -> str:
    """What a stage took: calls and tokens of the teacher and their price, or seconds."""
    found = stages[stage]
    if not found["calls"]:
        return seconds(found["seconds"]) if found["seconds"] >= 0.05 else ""
    usd = ((costs or {}).get("stages", {}).get(stage) or {}).get("usd")
    parts = [f"{short(found['calls'])} calls", f"{short(found['tokens_in'] + found['tokens_out'])} tokens"]
    return ", ".join([*parts, f"{usd:,.2f} USD"] if usd else parts)


def seconds(value: float) -> str:
    """A time in its own unit."""
    return f"{value:.1f} s" if value < 60 else f"{value / 60:.1f} min" if value < 3600 else f"{value / 3600:.1f} h"


def short(value: float) -> str:
    """A count in at most four figures: 860, 12.3K, 1.15M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "K")):
        if value >= size:
            return f"{value / (1e3 if letter == 'K' else size):.3g}{letter}"
    return f"{value:,.0f}"


def css(who: str) -> str:
    """The class that gives a colour."""
    return who.replace(" ", "-") or "plain"
