"""The tables of docs/recipes.md from finished runs.

Run as: python -m scripts.docs.recipes runs/smoke="1.5 GB" runs/demo="4.0 GB"      (what stands behind = goes into the memory column)
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean
from typing import Any

from speedlit.errors import UsageError
from speedlit.files import read_json

HEAD = ("recipe", "minutes", "memory", "teacher calls", "tokens", "USD", "triplets kept", "good: junior, senior, refined", "embedder: untrained, trained")
FITS = ("recipe", "fit", "steps", "seconds", "last loss")


def rows(root: Path, memory: str = "") -> tuple[list[str], list[list[str]]]:
    """The run's row of the first table, and its rows of the second, one a fit.

    Args:
        root: a finished run.
        memory: what was measured from outside.

    Raises:
        UsageError: the run has not come to its end.
    """
    summary, name = read_json(root / "summary.json"), read_json(root / "run.json")["config"]["name"]
    if "report" not in summary["stages"]:
        raise UsageError(f"{root} is not finished: `speedlit run --root {root}` with its config goes on with it")
    total, stages = summary["costs"]["total"], summary["stages"]
    minutes = sum(stage.get("seconds", 0) for stage in stages.values()) / 60
    good = [summary["quality"]["sources"].get(source, {}).get("good", {}).get("mean") for source in ("junior", "senior", "refined")]
    models = summary["embedders"]["models"]
    scores = [100 * mean(models[model].values()) for model in ("untrained", "embedder") if model in models]
    first = [
        name,
        f"{minutes:.1f}",
        memory or "not measured",
        f"{total['calls']:,}",
        f"{total['tokens']:,}",
        f"{total['usd']:.2f}" if total["usd"] is not None else "?",
        f"{summary['costs']['accepted']:,}",
        ", ".join("-" if value is None else f"{value:.3f}" for value in good),
        ", ".join(f"{score:.1f}" for score in scores),
    ]
    return first, [[name, *fit] for stage in stages for fit in fits(stage, stages[stage])]


def fits(stage: str, figures: dict[str, Any]) -> list[list[str]]:
    """One row for each fit of a stage: what it is, steps, seconds, last loss."""
    made = []
    for fit in (figures.get("notes") or {}).get("fits") or []:
        if "loss" in (fit.get("final") or {}):
            name = stage if fit["out"] == "." else f"{stage}, {fit['out']}"
            made.append([name, f"{fit['steps']:,}", f"{fit['seconds']:.0f}", f"{fit['final']['loss']:.3f}"])
    return made


def table(head: tuple[str, ...], body: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (list(head), ["---"] * len(head), *body))


def main(words: list[str]) -> None:
    """Print both tables."""
    found = [rows(Path(word.partition("=")[0]), word.partition("=")[2]) for word in words]
    print(table(HEAD, [first for first, _ in found]), table(FITS, [row for _, more in found for row in more]), sep="\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])
