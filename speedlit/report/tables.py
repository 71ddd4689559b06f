"""The tables of a run as rows of text; the terminal and the HTML page draw the same ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from speedlit.progress import clock
from speedlit.synthesis.quality.alarms import RULES, bound


@dataclass(frozen=True)
class Table:
    """A titled table; the first column names the row, the others are right-aligned."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


FATES = ("strict", "repaired", "parse", "schema", "refusal", "truncated", "unanswered")
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


def cost_table(costs: dict[str, Any]) -> Table:
    """What the data took, in all and per accepted sample, beside the paper and the E5-Mistral route."""
    named = [(name, row) for name, row in costs["stages"].items() if row["calls"] or row["local_seconds"] >= 0.05]
    named += [("other attempts", costs["other"])] if costs["other"]["calls"] else []
    named += [("all", costs["total"]), ("without brainstorming", costs["without_brainstorming"])]
    rows = [[name, *amounts(row), *amounts(row["per_accepted"], each=True)] for name, row in named]
    paper, e5 = costs["paper"], costs["e5"]
    for name, whole, each in (("the paper (its Table 5)", paper, paper), ("E5-Mistral, for as many", e5["for_as_many"], e5)):
        rows.append([name, *amounts(whole), *amounts(each["per_accepted"], each=True)])
    note = f"{costs['accepted']:,} accepted samples: refined records that passed the filters. "
    ours, bare = costs["share_of_e5"]["total"], costs["share_of_e5"]["without_brainstorming"]
    note += f"Of what E5-Mistral's route takes for as many, this run took {ours['calls']:.3g} times the calls and {ours['tokens']:.3g} times the tokens "
    note += f"(without brainstorming {bare['calls']:.3g} and {bare['tokens']:.3g}; "
    note += "the paper by its own totals 0.09 and 0.18, per accepted sample 0.049 and 0.097). "
    note += "Other attempts: damaged, lost in a crash, or of an earlier config. Caveats:\n" + "\n".join(f"- {line}" for line in costs["caveats"])
    names = ["calls", "tokens", "USD", "local seconds"]
    return Table("what the data cost", ["stage", *names, *(f"{name} / sample" for name in names)], rows, note)


def amounts(row: dict[str, Any], each: bool = False) -> list[str]:
    """Calls, tokens, USD and local seconds as text; blank where nobody knows."""
    digits = (4, 1, 6, 3) if each else (0, 0, 2, 1)
    values = (row.get(name) for name in ("calls", "tokens", "usd", "local_seconds"))
    return ["" if value is None else f"{value:,.{places}f}" for value, places in zip(values, digits, strict=True)]


def measures_table(measured: list[tuple[str, str, dict[str, Any]]], levels: dict[str, Any]) -> Table:
    """Every measure of the data of every stage; alarms are marked."""
    columns = [(f"{stage} {of}" if of != stage else stage, found) for stage, of, found in measured if set(found) & set(RULES)]
    rows = []
    for name in (name for name in RULES if any(name in found for _, found in columns)):
        cells = [f"{found[name]:g}{' !' if name in found['alarms'] else ''}" if name in found else "" for _, found in columns]
        rows.append([name, *cells, bound(name, levels[name])])
    note = "! = alarm: the figure's 95 % interval lies beyond the level. What each measure is, and what to do about it: docs/quality.md"
    return Table("data quality", ["measure", *(name for name, _ in columns), "level"], rows, note)


def answers_table(measured: list[tuple[str, str, dict[str, Any]]]) -> Table:
    """What became of the answers, per kind and model."""
    rows = []
    for stage, of, found in measured:
        for who, counts in found.get("answers", {}).items():
            rows.append([f"{stage} {of}" if of != stage else stage, who, *(number(counts.get(fate, 0)) for fate in FATES)])
    return Table("answers", ["stage", "kind, model", *FATES], rows, "parse: no JSON; schema: other keys or types than asked; truncated: cut by the token limit")


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


def bracket(cell: dict[str, Any], scale: float = 1.0, digits: int = 3) -> str:
    """``0.153 [0.138, 0.169]``; a single seed has no interval."""
    if cell["low"] is None:
        return f"{scale * cell['mean']:.{digits}f} [no interval]"
    return f"{scale * cell['mean']:.{digits}f} [{scale * cell['low']:.{digits}f}, {scale * cell['high']:.{digits}f}]"


def verdict(cell: dict[str, Any], scale: float = 1.0, digits: int = 3) -> str:
    """A difference; one whose interval holds zero says so, and so does one without an interval."""
    if cell["low"] is None:
        return f"{scale * cell['mean']:+.{digits}f} [no interval]"
    text = f"{scale * cell['mean']:+.{digits}f} [{scale * cell['low']:+.{digits}f}, {scale * cell['high']:+.{digits}f}]"
    return text if cell["verdict"] == "gain" else f"{text} {cell['verdict']}"


DIGEST = ("valid", "good", "score")  # checks of the records that the closing lines show; the page has all


def show(summary: dict[str, Any]) -> None:
    """Print what came out in short; the page has every table."""
    draw(digest(summary))
    for line in closing(summary):
        print(line)


def digest(summary: dict[str, Any]) -> list[Table]:
    """Record quality and embedders without their intervals' small print."""
    out = []
    if quality := summary.get("quality"):
        whole = quality_table(quality)
        out.append(Table(whole.title, whole.head, [row for row in whole.rows if row[0] in DIGEST]))
    if embedders := summary.get("embedders"):
        whole = embedder_table(embedders)
        out.append(Table(whole.title, whole.head, [row for row in whole.rows if " - " not in row[0]]))
    return out


def closing(summary: dict[str, Any]) -> list[str]:
    """Time, cost, what was kept, and how many alarms: a line each."""
    stages, costs = summary["stages"], summary.get("costs") or {}
    lines = [f"{len(stages)} stages in {clock(sum(s['seconds'] for s in stages.values()))}"]
    total = costs.get("total") or {}
    if total.get("calls"):
        money = f", ${total['usd']:,.2f}" if total.get("usd") is not None else ""
        lines[0] += f"; teacher: {total['calls']:,} calls, {total['tokens']:,.0f} tokens{money}"
    if costs.get("accepted"):
        share = costs["share_of_e5"]["total"]["calls"]
        lines[0] += f"; {costs['accepted']:,} accepted samples, for {share:.3g} times the calls of E5-Mistral's route"
    if alarms := summary.get("alarms"):
        names = ", ".join(dict.fromkeys(alarm["measure"] for alarm in alarms))
        lines.append(f"{len(alarms)} alarms of data quality: {names} (what each means: docs/quality.md)")
    return lines


WORDS = ("most for", "how")  # columns of words, left-aligned


def draw(drawn: Iterable[Table]) -> None:
    """Print tables; plain and unwrapped when not a terminal."""
    import sys

    from rich.console import Console
    from rich.table import Table as Drawn

    console = Console(width=None if sys.stdout.isatty() else 240, markup=False)  # "[no interval]" is no markup
    for table in drawn:
        grid = Drawn(title=table.title, caption=table.note or None, title_justify="left", caption_justify="left")
        for i, name in enumerate(table.head):
            grid.add_column(name, justify="left" if i == 0 or name in WORDS else "right")
        for row in table.rows:
            grid.add_row(*row)
        console.print(grid)
