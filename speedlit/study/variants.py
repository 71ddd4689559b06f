"""Several variants against a first one: the same number of triplets, the same seeds, differences paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speedlit.errors import UsageError
from speedlit.evaluation.bootstrap import Interval, t_interval
from speedlit.study.cells import Cell, count_of, perform
from speedlit.study.room import Room


@dataclass(frozen=True)
class Variant:
    """One row of a comparison.

    Args:
        name: of the row.
        what: what is different, in a few words.
        triplets: training data.
        reference: the variant that it is compared with; its own name where it is a reference.
        over: keys laid over the embedder's recipe.
    """

    name: str
    what: str
    triplets: Path
    reference: str
    over: Mapping[str, Any] = field(default_factory=dict)


def compare(room: Room, variants: Sequence[Variant]) -> dict[str, Any]:
    """Train every variant with every seed and put them side by side.

    Raises:
        UsageError: the data of a variant are empty.
    """
    counts = {variant.triplets: count_of(variant.triplets) for variant in variants}
    if empty := [path for path, count in counts.items() if not count]:
        raise UsageError(f"{empty[0]} holds no triplets, and all variants are trained on as many as the smallest has; leave its variant out")
    limits = [*counts.values(), *([room.study["triplets"]] if room.study["triplets"] else [])]
    take, seeds = min(limits), room.study["seeds"]
    cells = [Cell({"variant": v.name, "seed": seed}, v.triplets, take, seed, over=v.over) for v in variants for seed in range(seeds)]
    rows = perform(room, cells)
    of = {v.name: [row for row in rows if row["variant"] == v.name] for v in variants}
    tail = room.tail(variants[0].triplets)
    tasks = list(rows[0]["tasks"])
    found = []
    for v in variants:
        mine, other = of[v.name], of[v.reference]
        queries, before = [row["queries"] for row in mine], [row["queries"] for row in other]
        row: dict[str, Any] = {"name": v.name, "what": v.what, "reference": v.reference, "score": over_seeds(mine, "score")}
        row["tasks"] = {task: over_seeds(mine, task) for task in tasks}
        row["groups"] = tail.table(queries, before if v.name != v.reference else None)
        if v.name != v.reference:
            row["over"] = {name: difference(mine, other, name).to_json() for name in ("score", *tasks)}
        found.append(row)
    return {"cells": rows, "variants": found, "tasks": tasks, "triplets": take, "seeds": seeds, "tail_of": tail.names}


def value(row: Mapping[str, Any], name: str) -> float:
    """A cell's mean score, or that of a task."""
    return float(row["score"] if name == "score" else row["tasks"][name])


def over_seeds(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Mean and Student interval over seeds."""
    return t_interval([value(row, name) for row in rows]).to_json()


def difference(after: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]], name: str) -> Interval:
    """Paired by seed, Student interval."""
    start = {row["seed"]: value(row, name) for row in before}
    return t_interval([value(row, name) - start[row["seed"]] for row in after])
