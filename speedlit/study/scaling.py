"""``speedlit study scaling``: embedders on nested subsets of the data, several seeds, and the line score = a + b log10 N through their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from speedlit.errors import UsageError
from speedlit.evaluation.bootstrap import t_interval
from speedlit.study import sources
from speedlit.study.cells import Cell, count_of, perform
from speedlit.study.fitline import LEAST, Line, fit_line, reach
from speedlit.study.room import Room

HALVINGS = 5  # sizes where none are named


def run(room: Room) -> dict[str, Any]:
    """Train every size with every seed; the summary that the tables and the report draw."""
    triplets = sources.triplets(room, room.study["source"])
    sizes = chosen_sizes(room.study["sizes"], count_of(triplets))
    cells = [Cell({"n": n, "seed": seed}, triplets, n, seed, draw=seed) for n in sizes for seed in range(room.study["seeds"])]
    rows = perform(room, cells)
    return {"cells": rows, **law(rows), "doubling": doubling(rows, room.costs()), "tail": tail(room, triplets, rows), "source": room.study["source"]}


def chosen_sizes(wanted: Sequence[int], there: int) -> list[int]:
    """The subsets' sizes, ascending: those of the config, else all triplets and their halves.

    Raises:
        UsageError: more than there are, or fewer than three sizes.
    """
    sizes = sorted(set(wanted or [there >> i for i in range(HALVINGS)]))
    if sizes[-1] > there:
        raise UsageError(f"study.sizes asks for {sizes[-1]} triplets, and the source has {there}; leave out what is larger, or synthesise more")
    if len(sizes) < LEAST or sizes[0] < 1:
        raise UsageError(f"study.sizes needs {LEAST} different sizes at least, so that a bend can be seen; it has {sizes}")
    return sizes


def law(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The line over all sizes, the slope of each seed's own line, the sizes for which the law holds, and the same for every task."""
    sizes, blocks = [row["n"] for row in rows], [row["seed"] for row in rows]
    line = fit_line(sizes, [row["score"] for row in rows], blocks)
    within = reach(sizes, [row["score"] for row in rows], blocks)
    seeds = sorted(set(blocks))
    slopes = [fit_line([r["n"] for r in rows if r["seed"] == s], [r["score"] for r in rows if r["seed"] == s]).b for s in seeds]
    tasks = {task: fit_line(sizes, [row["tasks"][task] for row in rows], blocks).to_json() for task in rows[0]["tasks"]}
    return {**line.to_json(), "by_seed": t_interval(slopes).to_json(), "reach": within.to_json() if within else None, "tasks": tasks, "steps": steps(rows)}


def steps(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per size the scores' mean and interval over seeds, and what each step to the next size brought, per doubling, paired by seed."""
    out: list[dict[str, Any]] = []
    before: dict[int, float] = {}
    for n in sorted({row["n"] for row in rows}):
        scores = {row["seed"]: row["score"] for row in rows if row["n"] == n}
        found: dict[str, Any] = {**t_interval(list(scores.values())).to_json(), "n": n, "seeds": len(scores)}
        if before:
            doublings = float(np.log2(n / out[-1]["n"]))
            found["per_doubling"] = t_interval([(scores[s] - before[s]) / doublings for s in scores]).to_json()
        out.append(found)
        before = scores
    return out


def doubling(rows: Sequence[Mapping[str, Any]], costs: Mapping[str, Any]) -> dict[str, Any]:
    """What twice the largest subset would bring and cost.

    By the law where it holds up to the largest size, else by what the last step brought, which is more than a bending curve will give.
    The samples' price is the run's: the average of everything that was paid, and the work that grows with N alone.
    """
    largest = max(row["n"] for row in rows)
    within = reach([row["n"] for row in rows], [row["score"] for row in rows], [row["seed"] for row in rows])
    if within is not None and within.last == largest:
        gain = by_law(within)
    else:
        last = steps(rows)[-1]["per_doubling"]
        gain = {"points": last["mean"], "interval": [last["low"], last["high"]], "by": "the last step, at most"}
    each, growing = costs["each"], costs["growing"]
    usd = None if each["usd"] is None else each["usd"] * largest
    return {
        "from": largest,
        "to": 2 * largest,
        **gain,
        "average": {name: None if each[name] is None else each[name] * largest for name in ("calls", "tokens", "usd", "local_seconds")},
        "growing_seconds": growing * largest,
        "points_per_usd": gain["points"] / usd if usd else None,
    }


def by_law(line: Line) -> dict[str, Any]:
    """The line's gain for one doubling, with the interval of its slope."""
    two = float(np.log10(2))
    return {"points": line.b * two, "interval": [line.low * two, line.high * two], "by": "the law"}


def tail(room: Room, triplets: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Per size, the scores of head, middle and tail; and per group the slope of its own line."""
    groups = room.tail(triplets)
    sizes = sorted({row["n"] for row in rows})
    queries = {n: [row["queries"] for row in rows if row["n"] == n] for n in sizes}
    table = {n: groups.table(queries[n]) for n in sizes}
    lines = {}
    for name in next(iter(table.values())):
        ids = [query["id"] for query in groups.groups[name]]
        means = [100 * float(np.mean([row["queries"][i] for i in ids])) for row in rows]
        lines[name] = fit_line([row["n"] for row in rows], means, [row["seed"] for row in rows]).to_json()
    return {"of": groups.names, "rows": [{"n": n, "groups": found} for n, found in table.items()], "lines": lines}
