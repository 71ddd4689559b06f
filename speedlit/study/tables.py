"""The tables of a study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speedlit.report.tables import Table, bracket, verdict

DIGITS = 2  # of a score in points of 100


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """All tables of a study's summary."""
    return scaling_tables(summary) if summary["kind"] == "scaling" else variant_tables(summary)


def scaling_tables(summary: Mapping[str, Any]) -> list[Table]:
    """Scores per size, the law, and the long tail."""
    tasks = list(summary["tasks"])
    rows = []
    for step in summary["steps"]:
        mine = [cell for cell in summary["cells"] if cell["n"] == step["n"]]
        gain = verdict(step["per_doubling"], digits=DIGITS) if "per_doubling" in step else ""
        rows.append([f"{step['n']:,}", bracket(step, digits=DIGITS), gain, *(f"{sum(c['tasks'][t] for c in mine) / len(mine):.1f}" for t in tasks)])
    seeds = len({cell["seed"] for cell in summary["cells"]})
    note = f"source {summary['source']}; {seeds} seeds, each with its own nested subsets; mean [95 % Student interval over seeds]; main score x 100"
    title = "scaling: score by number of triplets"
    return [Table(title, ["triplets", "mean over tasks", "per doubling, from the size before", *tasks], rows, note), law_table(summary), tail_table(summary)]


def law_table(summary: Mapping[str, Any]) -> Table:
    """Intercept, slope, R2 and curvature of the line, over all sizes, where it holds, and per task."""
    lines = [("mean over tasks", summary)]
    if summary["reach"] and not summary["holds"]:
        lines.append((f"mean, {summary['reach']['first']:,} to {summary['reach']['last']:,} triplets", summary["reach"]))
    lines += list(summary["tasks"].items())
    lines += [(f"{name} of topic frequency", line) for name, line in summary["tail"]["lines"].items()]
    rows = []
    for name, line in lines:
        low, high = (("-" if end is None else f"{end:.2f}") for end in line["interval"])
        curved = "-" if line["p_curvature"] is None else f"{line['p_curvature']:.2g}"
        rows.append([name, f"{line['a']:.1f}", f"{line['b']:.2f} [{low}, {high}]", f"{line['r2']:.3f}", curved, line["verdict"]])
    return Table("score = a + b log10 N", ["score", "a", "b [95 %]", "R2", "p (no bend)", "how"], rows, "\n".join(sentences(summary)))


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """Where the law holds and what the next doubling would bring."""
    within, step = summary["reach"], summary["doubling"]
    if summary["holds"]:
        where = f"The law holds over all sizes, {summary['first']:,} to {summary['last']:,}."
    elif within:
        where = f"The law does not hold over all sizes ({summary['verdict']}); it does from {within['first']:,} to {within['last']:,}."
    else:
        where = f"The law holds nowhere among these sizes ({summary['verdict']})."
    slopes = summary["by_seed"]
    out = [where, f"Slope of each seed's own line: {bracket(slopes, digits=DIGITS)}."]
    low, high = (("-" if end is None else f"{end:+.2f}") for end in step["interval"])
    bring = f"{step['from']:,} to {step['to']:,} triplets: {step['points']:+.2f} points [{low}, {high}] by {step['by']}"
    average = step["average"]
    usd = "an unknown sum of money (no price is set)" if average["usd"] is None else f"{average['usd']:.2f} USD"
    price = f"{usd}, {average['calls']:,.0f} calls and {average['local_seconds']:,.0f} local seconds at the run's average per accepted sample"
    out.append(f"{bring}, for {price} ({step['growing_seconds']:,.0f} local seconds where the teacher need not be asked again).")
    out.append("Points per USD: " + (f"{step['points_per_usd']:.4g}." if step["points_per_usd"] is not None else "none, as no money is spent."))
    return out


def tail_table(summary: Mapping[str, Any]) -> Table:
    """Scores per size and group of topics."""
    rows = [[f"{row['n']:,}", *(bracket(cell, digits=1) for cell in row["groups"].values())] for row in summary["tail"]["rows"]]
    return groups_table("scaling by topic frequency", "triplets", summary["tail"]["rows"], rows, summary["tail"]["of"])


def groups_table(title: str, first: str, found: list[Mapping[str, Any]], rows: list[list[str]], of: list[str]) -> Table:
    """A table whose columns are the groups of topics."""
    groups = found[0]["groups"] if found else {}
    if not groups:
        return Table(title, [first], [], "no query of known topic: the evaluation has no topics.jsonl, and the run no held-out records")
    head = [f"{name} ({cell['frequency'][0]}-{cell['frequency'][1]} per topic)" for name, cell in groups.items()]
    counts = ", ".join(f"{name} {cell['queries']} queries of {cell['topics']} topics" for name, cell in groups.items())
    note = f"nDCG@10 x 100 of {', '.join(of)}; topics by their number of training triplets; {counts}; mean [95 % bootstrap over cells of the queries' facts]"
    return Table(title, [first, *head], rows, note)


def variant_tables(summary: Mapping[str, Any]) -> list[Table]:
    """Scores per variant, differences to the first one, and the long tail."""
    tasks, reference = summary["tasks"], summary["reference"]
    rows, differences, groups = [], [], []
    for row in summary["variants"]:
        rows.append([row["name"], row["what"], bracket(row["score"], digits=DIGITS), *(bracket(row["tasks"][t], digits=1) for t in tasks)])
        groups.append([row["name"], *(bracket(cell, digits=1) for cell in row["groups"].values())])
        if "over" in row:
            over = [verdict(row["over"][name], digits=DIGITS) for name in ("score", *tasks)]
            differences.append([f"{row['name']} - {row['reference']}", *over, *(verdict(cell["over"], digits=1) for cell in row["groups"].values())])
    note = f"{summary['triplets']:,} triplets each; {summary['seeds']} seeds; mean [95 % Student interval over seeds]; main score x 100"
    names = [f"{name} of topics" for name in (summary["variants"][0]["groups"] if summary["variants"] else {})]
    what = f"{summary['kind']}"
    return [
        Table(what, ["variant", "how", "mean over tasks", *tasks], rows, note),
        Table(
            f"{what}, differences to {reference}",
            ["difference", "mean over tasks", *tasks, *names],
            differences,
            "paired by seed (groups of topics: by query); where the interval holds 0 the cell says: no gain",
        ),
        groups_table(f"{what} by topic frequency", "variant", summary["variants"], groups, summary["tail_of"]),
    ]
