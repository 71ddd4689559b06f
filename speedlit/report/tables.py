"""The tables of a run as rows of text; the terminal and the HTML page draw the same ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """A titled table; the first column names the row, the others are right-aligned."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


def tables(summary: dict[str, Any]) -> list[Table]:
    """All tables that the summary has figures for."""
    out = [stage_table(summary["stages"])]
    if quality := summary.get("quality"):
        out += [quality_table(quality), difference_table(quality)]
    if (embedders := summary.get("embedders")) is not None:
        out.append(embedder_table(embedders))
    return out


COUNTED = ("calls", "generated", "tokens_in", "tokens_out")
SOURCES = ("junior", "control", "senior", "refined", "teacher", "best")
CHECKS = ("valid", "ontask", "length", "relevant", "hn_ok", "hn_hard", "nocopy", "plausible", "good", "score")


def ordered(names: Iterable[str], known: tuple[str, ...]) -> list[str]:
    """Names in the order of ``known`` (by their first word), then the others."""
    place = {name: i for i, name in enumerate(known)}
    return sorted(names, key=lambda name: (place.get(name.split()[0], len(known)), name))


def stage_table(stages: dict[str, Any]) -> Table:
    """Seconds, calls, tokens, accepted and rejected of each finished stage."""
    rows = []
    for name, s in stages.items():
        rejected = sum(s["rejected"].values())
        why = ", ".join(f"{k} {v}" for k, v in sorted(s["rejected"].items(), key=lambda kv: -kv[1])[:3])
        figures = (number(s[key]) for key in COUNTED)
        rows.append([name, f"{s['seconds']:.1f}", *figures, number(s["accepted"]), number(rejected), why])
    sums = (number(sum(s[key] for s in stages.values())) for key in COUNTED)
    rows.append(["all", f"{sum(s['seconds'] for s in stages.values()):.1f}", *sums, "", "", ""])
    head = ["stage", "seconds", "teacher calls", "generated", "tokens in", "tokens out", "accepted", "rejected", "most for"]
    return Table("stages", head, rows)


def quality_table(quality: dict[str, Any]) -> Table:
    """Each check of each generator's records on the held-out prompts."""
    sources = ordered(quality["sources"], SOURCES)
    names = ordered(quality["sources"][sources[0]], CHECKS)
    rows = [[name, *(bracket(quality["sources"][source][name]) for source in sources)] for name in names]
    note = f"{quality['prompts']} held-out prompts in {quality['cells']} held-out cells, {quality['samples']} answer(s) each; "
    note += "mean [95 % cluster bootstrap over cells]"
    revisor = quality["revisor"]
    if revisor["fix_rate"] is not None and revisor["break_rate"] is not None:
        note += f". Revisor: fixes {revisor['fix_rate']:.3f} of {revisor['bad']} bad records, breaks {revisor['break_rate']:.3f} of {revisor['good']} good ones"
    return Table("record quality", ["check", *sources], rows, note)


def difference_table(quality: dict[str, Any]) -> Table:
    """Paired differences between generators, with the verdict."""
    names = ordered(next(iter(quality["sources"].values())), CHECKS)
    head = ["check", *(f"{d['of']} - {d['over']}" for d in quality["differences"])]
    rows = [[name, *(verdict(d[name]) for d in quality["differences"])] for name in names]
    note = "paired by prompt; where the interval holds 0 the cell says: no gain. "
    note += "control = SFT on the chosen answers: the senior's data, steps and learning rate, beta 0"
    return Table("record quality, differences", head, rows, note)


def embedder_table(embedders: dict[str, Any]) -> Table:
    """mteb main scores, in points of 100."""
    tasks = embedders["tasks"]
    sources = {name: embedders["sources"][name] for name in ordered(embedders["sources"], SOURCES)}
    rows = [["untrained", *(f"{100 * embedders['models']['untrained'][t]:.1f}" for t in tasks)]]
    for source, cells in sources.items():
        rows.append([f"{source} data", *(bracket(cells[t], 100, 1) for t in tasks)])
    for source, cells in sources.items():
        for other in (key for key in cells if key.startswith("over ")):
            rows.append([f"{source} - {other.removeprefix('over ')}", *(verdict(cells[other][t], 100, 1) for t in tasks)])
    if not embedders["sources"]:
        rows.append(["embedder", *(f"{100 * embedders['models']['embedder'][t]:.1f}" for t in tasks)])
    return Table(
        "embedder, mteb main score x 100",
        ["data", *tasks],
        rows,
        "equal count per source; mean [95 % Student interval over the seeds]; differences paired by seed",
    )


def number(value: float) -> str:
    """A count, blank for nothing."""
    return f"{value:,}" if value else ""


def bracket(cell: dict[str, float], scale: float = 1.0, digits: int = 3) -> str:
    """``0.153 [0.138, 0.169]``."""
    return f"{scale * cell['mean']:.{digits}f} [{scale * cell['low']:.{digits}f}, {scale * cell['high']:.{digits}f}]"


def verdict(cell: dict[str, Any], scale: float = 1.0, digits: int = 3) -> str:
    """A difference; one whose interval holds zero says so."""
    text = f"{scale * cell['mean']:+.{digits}f} [{scale * cell['low']:+.{digits}f}, {scale * cell['high']:+.{digits}f}]"
    return text if cell["verdict"] == "gain" else f"{text} {cell['verdict']}"


def show(summary: dict[str, Any]) -> None:
    """Print the tables; plain and unwrapped when not a terminal."""
    import sys

    from rich.console import Console
    from rich.table import Table as Drawn

    console = Console(width=None if sys.stdout.isatty() else 240)
    for table in tables(summary):
        drawn = Drawn(title=table.title, caption=table.note or None, title_justify="left", caption_justify="left")
        for i, name in enumerate(table.head):
            drawn.add_column(name, justify="left" if i == 0 or name == "most for" else "right")
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)
