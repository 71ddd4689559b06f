"""The embedder on MTEB: its scores by category beside what the paper published, and by data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speedlit.files import read_json
from speedlit.report.markup import folded, note, table
from speedlit.report.published import CATEGORIES, TABLE_1, TABLE_8
from speedlit.report.tables import Table, embedder_table

OTHER = "other"
Scores = Mapping[str, float]


def scores(embedders: Mapping[str, Any] | None, data: Path | None) -> str:
    """The tables; ``data`` is the folder of local evaluation sets, whose list says of which category each is. "" before the evaluation."""
    if not embedders:
        return ""
    models: dict[str, Scores] = embedders["models"]
    category = categories(embedders["tasks"], data)
    shared = [task for task in embedders["tasks"] if task in TABLE_8]
    words = f"The paper's rows are means over its 56 tasks; this run was scored on {len(embedders['tasks'])}, of which {len(shared)} are among them. "
    words += "" if len(shared) == len(TABLE_8) else "Rows over different tasks are not to be compared: they stand here to show where the published figures lie."
    return "\n".join(
        [
            table(embedder_table(dict(embedders))),
            table(by_category(models, category)),
            note(words),
            folded("Every data set, beside the paper's Table 8", table(by_task(models, category))),
        ]
    )


def categories(tasks: list[str], data: Path | None) -> dict[str, str]:
    """The MTEB category of each task, from the paper's list, else from the local folder's own."""
    listed = read_json(data / "tasks.json") if data and (data / "tasks.json").is_file() else []
    local = {row.get("name") or row.get("task") or row.get("folder"): row.get("type") for row in listed if isinstance(row, dict)}
    found = {task: TABLE_8[task][0] if task in TABLE_8 else local.get(task) for task in tasks}
    return {task: of if of in CATEGORIES else OTHER for task, of in found.items()}


def by_category(models: Mapping[str, Scores], category: Mapping[str, str]) -> Table:
    """Means over the data sets of each category; a category without any is blank."""
    rows: list[list[str]] = [["this run"]]
    for name, label in (("untrained", "untrained base"), ("embedder", "embedder")):
        if name in models:
            rows.append([label, f"{len(models[name])} tasks", *(mean([models[name][t] for t in models[name] if category[t] == c]) for c in CATEGORIES)])
            rows[-1].append(mean(list(models[name].values())))
    for setting, published in TABLE_1.items():
        rows.append([setting])
        rows += [[model, data, *(f"{value:.1f}" for value in values)] for model, data, values in published]
    return Table("MTEB by category, beside the paper", ["model", "data", *CATEGORIES.values(), "mean of tasks"], rows)


def mean(values: list[float]) -> str:
    """Points of 100; blank without values."""
    return f"{100 * sum(values) / len(values):.1f}" if values else ""


def by_task(models: Mapping[str, Scores], category: Mapping[str, str]) -> Table:
    """Each data set of the run, with SPEED's published scores where it is one of the 56."""
    own = [name for name in ("untrained", "embedder") if name in models]
    rows = []
    for task in sorted(category, key=lambda task: (list(CATEGORIES).index(category[task]) if category[task] in CATEGORIES else 99, task)):
        published = [f"{value:.1f}" for value in TABLE_8[task][1:]] if task in TABLE_8 else ["", ""]
        rows.append([task, category[task], *(f"{100 * models[name][task]:.1f}" for name in own), *published])
    return Table("main score x 100 by data set", ["data set", "category", *own, "SPEED, synthetic (Table 8)", "SPEED, with labelled (Table 8)"], rows)
