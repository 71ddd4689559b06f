"""The texts that models are scored on, so that they can be kept out of training data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speedlit.errors import UsageError
from speedlit.evaluation.tasks import load_tasks, read_rows, split_names

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

# Columns that say how a text is judged: two data sets may well have the label "positive" in common.
NO_TEXTS = {"id", "_id", "idx", "label", "labels", "label_text", "score", "lang", "language", "relevance", "query-id", "corpus-id"}
JUDGEMENTS = {"relevant_docs", "top_ranked"}
ROWS = 1000  # read at a time


def evaluation_texts(names: str | Sequence[str], data: Path | None = None) -> Iterator[str]:
    """Yield the texts of the evaluation splits of tasks by name; those that ``data`` holds are left out, since its files can be read as they are.

    Raises:
        UsageError: an unknown task, or its texts cannot be had.
    """
    held = read_rows(data) if data is not None and (data / "tasks.json").is_file() else {}
    wanted = [name for name in split_names(names) or [] if name not in held]
    for task in load_tasks(wanted, data if held else None) if wanted else []:
        if not task.data_loaded:
            load(task)
        yield from texts_of(task)


def load(task: AbsTask) -> None:
    """Load a task's data by mteb's own loader.

    Raises:
        UsageError: they cannot be had.
    """
    try:
        task.load_data()
    except (OSError, ValueError, RuntimeError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(
            f"the texts of the evaluation task {task.metadata.name} cannot be had ({why}), so nothing can say whether the data hold them: "
            "load the task once online, name a folder that holds it with evaluation.data, or switch this filter off with filters.ngram: null"
        ) from error


def texts_of(task: AbsTask) -> Iterator[str]:
    """Yield every text of a task's evaluation splits; labels, scores and ids are no texts."""
    labels = {getattr(task, name, None) for name in ("label_column_name", "labels_column_name")}
    for table in tables(task.dataset, set(task.eval_splits)):
        names = [name for name in table.column_names if name not in NO_TEXTS | labels]
        for start in range(0, len(table), ROWS):
            block = table[start : start + ROWS]
            for name in names:
                yield from strings(block[name])


def tables(value: Any, splits: set[str]) -> Iterator[Any]:
    """Yield the tables inside nested mappings of languages, splits and parts; other splits than those asked for are left out."""
    if hasattr(value, "column_names") and not isinstance(value, Mapping):
        yield value
    elif isinstance(value, Mapping):
        chosen = splits & set(value) or set(value)
        for key, item in value.items():
            if key in chosen and key not in JUDGEMENTS:
                yield from tables(item, splits)


def strings(value: Any) -> Iterator[str]:
    """Yield the strings of a column, also of lists in it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings(item)
