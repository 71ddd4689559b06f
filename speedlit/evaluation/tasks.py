"""Which tasks a model is scored on: mteb's own by name, or a folder of local sets.

A folder holds ``tasks.json``, a list of rows; each row is a registered task with a local copy of its data
(``{"folder": "SciFact", "task": "SciFact"}``) or a task of one's own
(``{"folder": "MySet", "type": "Retrieval", "prompt": "..." or {"query": "..."}}``, optionally ``main_score``, ``splits``,
``attributes`` of the mteb base class, and ``allow``: what else would be refused, ``["empty", "long"]`` texts). Data are JSON
lines, one file per split; retrieval and reranking sets have ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.jsonl`` (or
what the YAML header of their README.md names).

Data are read into memory here rather than through a cache on disk, which keys files by time and size and can hand back
old rows. mteb's metadata are class attributes: every task gets a copy of its own, so nothing leaks between tasks.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from speedlit.errors import SpeedlitError, UsageError
from speedlit.evaluation.readable import ALLOWED, Look
from speedlit.evaluation.state import same_randomness
from speedlit.files import read_json, read_jsonl

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskCategory

SUBSETS = Path(__file__).resolve().parent.parent / "configs" / "eval"
ROW_KEYS = {"folder", "task", "type", "name", "prompt", "main_score", "splits", "attributes", "allow"}
TEXTS = ("folder", "task", "type", "name", "main_score")  # keys of a row whose values are texts
SEARCH_COLUMNS = {
    "corpus": {"_id", "text"},
    "queries": {"_id", "text"},
    "default": {"query-id", "corpus-id", "score"},
    "top_ranked": {"query-id", "corpus-ids"},
}


@dataclass(frozen=True)
class Kind:
    """What mteb needs to know about one task type.

    ``columns`` are names of columns, or names of the attributes of the base class that hold them.
    """

    base: str
    main_score: str
    category: TaskCategory
    columns: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


LABELLED = ("input_column_name", "label_column_name")
SUMMARIES = ("text_column_name", "human_summaries_column_name", "machine_summaries_column_name", "relevancy_column_name")
# mteb embeds 4 % of a clustering set by default; here all documents are embedded and each of the 10 runs clusters 2,048.
ALL_DOCUMENTS = {"max_fraction_of_documents_to_embed": None, "max_documents_per_cluster": 2048}
KINDS = {
    "Classification": Kind("AbsTaskClassification", "accuracy", "t2c", LABELLED),
    "MultilabelClassification": Kind("AbsTaskMultilabelClassification", "accuracy", "t2c", LABELLED),
    "Clustering": Kind("AbsTaskClustering", "v_measure", "t2c", LABELLED, ALL_DOCUMENTS),
    "PairClassification": Kind("AbsTaskPairClassification", "max_ap", "t2t", ("input1_column_name", "input2_column_name", "label_column_name")),
    "STS": Kind("AbsTaskSTS", "cosine_spearman", "t2t", ("column_names", "score")),
    "BitextMining": Kind("AbsTaskBitextMining", "f1", "t2t", ("sentence1", "sentence2")),
    "Summarization": Kind("AbsTaskSummarization", "cosine_spearman", "t2t", SUMMARIES, {"min_score": 0, "max_score": 5}),
    "Retrieval": Kind("AbsTaskRetrieval", "ndcg_at_10", "t2t"),
    "Reranking": Kind("AbsTaskRetrieval", "map_at_1000", "t2t"),
}
NO_TEXTS = {"label_column_name", "score", "relevancy_column_name"}


@same_randomness()  # making a task seeds all random generators
def load_tasks(names: str | Sequence[str] | None = None, data: str | Path | None = None) -> list[AbsTask]:
    """Tasks ready to run.

    Args:
        names: names of tasks, sets, benchmarks (``MTEB(eng, v2)``) and shipped lists (``quick``, ``eng-v1-56``), also as one string with commas;
            None means everything in ``data``.
        data: a folder with ``tasks.json``; its sets are loaded now, so that a mistake in them shows before anything is trained.

    Returns:
        mteb tasks, in the order asked for. A name that ``data`` does not hold is taken from mteb, which needs its data cached or online.

    Raises:
        UsageError: nothing asked for, an unknown name (near names are offered), a missing folder or file, a missing column.
    """
    wanted = split_names(names)
    rows = read_rows(Path(data)) if data is not None else {}
    if wanted is None:
        if not rows:
            raise UsageError("no tasks to run: give task names, or a folder with a tasks.json")
        wanted = list(rows)
    return [task for name in _expanded(wanted, rows) for task in (_find(name, rows, Path(data) if data is not None else None))]


def subsets() -> dict[str, list[str]]:
    """The shipped lists of tasks by name, such as ``quick``."""
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(SUBSETS.glob("*.yaml"))}


def _expanded(names: Iterable[str], rows: Mapping[str, Any]) -> list[str]:
    """Names with those of shipped lists in place of the lists."""
    known = subsets()
    return [name for given in names for name in (known.get(given.removeprefix("eval/"), [given]) if given not in rows else [given])]


def split_names(names: str | Sequence[str] | None) -> list[str] | None:
    """A list of names from a list or from one string with commas (benchmark names keep the comma between brackets)."""
    if not names:
        return None
    if not isinstance(names, str):
        return [str(name) for name in names]
    parts = [""]
    for character in names:
        inside = parts[-1].count("(") > parts[-1].count(")")
        if character == "," and not inside:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def read_rows(data: Path) -> dict[str, dict[str, Any]]:
    """The rows of ``data/tasks.json`` by task name, checked.

    Raises:
        UsageError: the folder or the file is missing, or a row has unknown or missing keys.
    """
    path = data / "tasks.json"
    if not data.is_dir():
        raise UsageError(f"the data folder {data} does not exist: give a folder that holds a tasks.json")
    if not path.is_file():
        raise UsageError(f"{data} has no tasks.json: list its sets there, one row such as {{\"folder\": \"SciFact\", \"task\": \"SciFact\"}} each")
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{path} must be a list of objects, one per task")
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = _checked_row(row, path)["name"]
        if name in found:
            raise UsageError(f"{path} has two rows of the name {name!r}: take one out, or give it another `name`")
        found[name] = row
    return found


def _checked_row(row: dict[str, Any], path: Path) -> dict[str, Any]:
    if "folder" not in row or ("task" in row) == ("type" in row):
        raise UsageError(f"{path}: row {row} needs `folder` and either `task` (a registered mteb task) or `type` (a task of your own)")
    if unknown := set(row) - ROW_KEYS:
        raise UsageError(f"{path}: row of {row['folder']} has the unknown key {sorted(unknown)[0]!r}; known keys: {', '.join(sorted(ROW_KEYS))}")
    if wrong := _misshapen(row):
        raise UsageError(f"{path}: row of {row['folder']} has \"{wrong[0]}\": {row[wrong[0]]!r}; it is {wrong[1]}")
    if "type" in row and row["type"] not in KINDS:
        raise UsageError(f"{path}: row of {row['folder']} has the unknown type {row['type']!r}{_near(row['type'], KINDS)}; types: {', '.join(KINDS)}")
    allowed = row.get("allow", [])
    if not isinstance(allowed, list) or any(what not in ALLOWED for what in allowed) or (allowed and "task" in row):
        raise UsageError(f"{path}: row of {row['folder']} has \"allow\": {allowed!r}; it is a list of {' and '.join(ALLOWED)}, for a set of your own")
    row.setdefault("name", row.get("task") or Path(row["folder"]).name)
    if row["name"] in ("", "..") or set(row["name"]) & set("/\\\0"):
        raise UsageError(f"{path}: row of {row['folder']} has the name {row['name']!r}, which can't be that of a file of scores; give another `name`")
    return row


def _misshapen(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first key of a row whose value is of another kind than it must be, and what it must be."""
    for key in TEXTS:
        if key in row and not (isinstance(row[key], str) and row[key]):
            return key, "a text"
    prompt, splits = row.get("prompt"), row.get("splits", ["test"])
    sides = isinstance(prompt, dict) and set(prompt) <= {"query", "document"} and _texts(prompt.values())
    if prompt is not None and not isinstance(prompt, str) and not sides:
        return "prompt", "a text, or an object with a text for `query` and one for `document`"
    if not isinstance(splits, list) or not splits or not _texts(splits):
        return "splits", "a list of names, such as [\"test\"]"
    return None if isinstance(row.get("attributes", {}), dict) else ("attributes", "an object with attributes of mteb's class")


def _texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def registered_names() -> list[str]:
    """The names of all tasks that mteb knows."""
    from mteb.get_tasks import _TASKS_REGISTRY  # the public get_tasks() builds every task first, which takes seconds

    return list(_TASKS_REGISTRY)


def _near(name: str, names: Iterable[str]) -> str:
    """`` (did you mean ...?)`` where something is near, else nothing."""
    lower = {other.lower(): other for other in names}
    found = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)]
    return f" (did you mean {', '.join(found)}?)" if found else ""


def _find(name: str, rows: Mapping[str, dict[str, Any]], data: Path | None) -> list[AbsTask]:
    """The task of one name, or the tasks of one benchmark name, with local data where ``rows`` has them."""
    if name in rows:
        assert data is not None
        return [local_task(rows[name], data)]
    import mteb

    registry = registered_names()
    if name in registry:
        return [mteb.get_task(name)]
    benchmarks = {benchmark.name: benchmark for benchmark in mteb.get_benchmarks()}
    if name in benchmarks:
        return [local_task(rows[task.metadata.name], data) if task.metadata.name in rows and data else task for task in benchmarks[name].tasks]
    where = f" in {data} or mteb" if data is not None else " in mteb"
    raise UsageError(f"there is no task {name!r}{where}{_near(name, [*rows, *subsets(), *registry, *benchmarks])}")


def local_task(row: Mapping[str, Any], data: Path) -> AbsTask:
    """One row of ``tasks.json`` as a task with its data in memory.

    Raises:
        UsageError: unknown registered name, missing folder, file, split or column, or an unknown class attribute.
    """
    folder = data / row["folder"]
    if not folder.is_dir():
        raise UsageError(f"{data / 'tasks.json'} names the folder {row['folder']!r}, but {folder} does not exist")
    if "task" in row:
        return _fill(_registered(row, folder), folder, None)
    look = Look(row.get("allow", ()))
    task = _fill(_own(row, folder), folder, look)
    task.long_texts = look.long  # type: ignore[attr-defined]  # a model will say which of them it cuts
    return task


def _registered(row: Mapping[str, Any], folder: Path) -> AbsTask:
    import mteb

    registry = registered_names()
    if row["task"] not in registry:
        raise UsageError(f"tasks.json: mteb has no task {row['task']!r}{_near(row['task'], registry)}; for a set of your own give `type` instead of `task`")
    task = mteb.get_task(row["task"])
    task.metadata = task.metadata.model_copy(update={"dataset": {"path": str(folder), "revision": "local"}})
    return task


def _own(row: Mapping[str, Any], folder: Path) -> AbsTask:
    from mteb import abstasks
    from mteb.abstasks.task_metadata import TaskMetadata

    kind = KINDS[row["type"]]
    base = getattr(abstasks, kind.base)
    attributes = {**kind.attributes, **row.get("attributes", {})}
    for name in attributes:
        if not hasattr(base, name) and not any(name in getattr(part, "__annotations__", {}) for part in base.__mro__):
            raise UsageError(f"tasks.json: row of {row['folder']} sets the attribute {name!r}, which {kind.base} of mteb does not have")
    metadata = TaskMetadata(
        name=row["name"],
        type=row["type"],
        description=row["name"],
        reference=None,
        dataset={"path": str(folder), "revision": "local"},
        category=kind.category,
        modalities=["text"],
        eval_splits=list(row.get("splits", ["test"])),
        eval_langs=["eng-Latn"],
        main_score=row.get("main_score", kind.main_score),
        prompt=row.get("prompt"),
    )
    task: AbsTask = type(row["name"], (base,), {"metadata": metadata, **attributes})()
    return task


def _fill(task: AbsTask, folder: Path, look: Look | None) -> AbsTask:
    """Read the data of a task into memory, and look at its texts; tasks with a loader of their own are left to it."""
    from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskRetrieval

    loader = type(task).load_data
    if loader not in (AbsTask.load_data, AbsTaskRetrieval.load_data) or task.metadata.is_multilingual:
        try:
            task.load_data()
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"{folder} is not a copy that mteb's {task.metadata.name} can read: {error}") from error
        return task
    if isinstance(task, AbsTaskRetrieval):
        task.dataset = {"default": {split: _search_split(folder, split, look) for split in task.eval_splits}}
    else:
        task.dataset = _splits(task, folder)
    task.dataset_transform()
    task.data_loaded = True
    if not isinstance(task, AbsTaskRetrieval):
        _check_columns(task, task.dataset, folder, look)
        if isinstance(task, AbsTaskClassification):
            task.dataset = _numbered(task.dataset, task.label_column_name)
    return task


def _numbered(dataset: Any, column: str) -> Any:
    """Two labels in words as 0 and 1, in their alphabetical order: mteb's average precision of two classes reads no words."""
    labels = sorted({str(label) for split in dataset.values() for label in split[column]})
    if len(labels) != 2 or not all(isinstance(label, str) for split in dataset.values() for label in split[column]):
        return dataset
    numbers = {name: [labels.index(label) for label in split[column]] for name, split in dataset.items()}
    return type(dataset)({name: split.remove_columns(column).add_column(column, numbers[name]) for name, split in dataset.items()})


def _splits(task: AbsTask, folder: Path) -> Any:
    from datasets import DatasetDict

    files = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    for split in _read_splits(task):
        if split not in files:
            found = ", ".join(files) or "no other split"
            raise UsageError(f"{folder} has no {split}.jsonl, which the {task.metadata.type} task {task.metadata.name} needs; it has {found}")
    return DatasetDict({split: _table(path) for split, path in files.items()})


def _read_splits(task: AbsTask) -> list[str]:
    return [*task.eval_splits, *([task.train_split] if hasattr(task, "train_split") else [])]


def _table(path: Path) -> Any:
    """A JSON-lines file as a table in memory."""
    from datasets import Dataset
    from pyarrow import ArrowException

    rows = list(read_jsonl(path))
    if not rows:
        raise UsageError(f"{path} is empty: at least one row is needed")
    try:
        return Dataset.from_list(rows)
    except (ArrowException, TypeError) as error:
        raise UsageError(f"{path}: a column mixes types: {error}") from error


def _require(path: Path, present: Iterable[str], needed: Iterable[str], what: str) -> None:
    if missing := sorted(set(needed) - set(present)):
        raise UsageError(f"{path} lacks the column {missing[0]!r} that {what} needs; it has: {', '.join(present)}")


def _check_columns(task: AbsTask, tables: Any, folder: Path, look: Look | None) -> None:
    """Refuse a table without the columns that the task reads, or with a hole in one of them; look at its texts."""
    kind = KINDS.get(task.metadata.type)
    if kind is None:
        return
    texts = _columns(task, (name for name in kind.columns if name not in NO_TEXTS))
    needed = _columns(task, kind.columns)
    for split in _read_splits(task):
        path, table = folder / f"{split}.jsonl", tables[split]
        _require(path, table.column_names, needed, f"the {task.metadata.type} task {task.metadata.name}")
        for column in needed:
            if table.data.column(column).null_count:
                raise UsageError(f"{path}: some rows have no value for {column!r}")
        for column in texts:
            _check_texts(path, column, table, look)
        if task.metadata.type == "STS" and table.features["score"].dtype == "string":
            raise UsageError(f"{path}: the column 'score' holds texts; scores are numbers")


def _columns(task: AbsTask, names: Iterable[str]) -> list[str]:
    """Columns by their own names, or by those of attributes that hold one name or several."""
    return [column for name in names for part in [getattr(task, name, name)] for column in ([part] if isinstance(part, str) else part)]


def _check_texts(path: Path, column: str, table: Any, look: Look | None) -> None:
    """Refuse a column of texts that holds something else, or nothing: single empty texts do occur in published sets."""
    kind = getattr(table.features[column], "dtype", "list")
    if kind not in ("string", "large_string", "list"):
        raise UsageError(f"{path}: the column {column!r} holds {kind}, not texts")
    if kind != "list" and not any(text.strip() for text in table[column]):
        raise UsageError(f"{path}: every text of the column {column!r} is empty")
    if look is not None:
        for number, value in enumerate(table[column], 1):
            for text in value if isinstance(value, list) else [value]:
                look.at(path, number, column, text)


def _search_split(folder: Path, split: str, look: Look | None) -> RetrievalSplitData:
    """Corpus, queries with judgements, judgements, and (reranking) candidates of one split, as mteb wants them."""
    parts = _search_parts(folder)
    judged = _search_part(folder, parts, "default", split)
    relevant: dict[str, dict[str, int]] = {}
    for row in judged:
        relevant.setdefault(str(row["query-id"]), {})[str(row["corpus-id"])] = int(row["score"])
    corpus = [{"title": "", **row, "_id": str(row["_id"])} for row in _search_part(folder, parts, "corpus", split, look)]
    asked = _search_part(folder, parts, "queries", split, look)
    queries = [{"_id": str(row["_id"]), "text": row["text"]} for row in asked if str(row["_id"]) in relevant]
    _check_ids(folder, relevant, {row["_id"] for row in queries}, {row["_id"] for row in corpus})
    ranked = None
    if "top_ranked" in parts:
        rows = _search_part(folder, parts, "top_ranked", split)
        ranked = {str(row["query-id"]): [str(name) for name in row["corpus-ids"]] for row in rows}
    return {"corpus": _search_table(corpus, ("title", "text")), "queries": _search_table(queries, ("text",)), "relevant_docs": relevant, "top_ranked": ranked}


def _check_ids(folder: Path, relevant: Mapping[str, Mapping[str, int]], queries: set[str], corpus: set[str]) -> None:
    if lost := sorted(set(relevant) - queries):
        raise UsageError(f"{folder}: the judgements name the query {lost[0]!r}, which the queries lack")
    if not any(document in corpus for documents in relevant.values() for document in documents):
        raise UsageError(f"{folder}: no judged document is in the corpus; are the ids of both the same?")


def _search_table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"id": [row["_id"] for row in rows], **{name: [row[name] or "" for row in rows] for name in columns}})


def _search_parts(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """The files of each part and split: from the YAML header of README.md, else by their usual names."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    if text.startswith("---"):
        configs = (yaml.safe_load(text.split("---")[1]) or {}).get("configs", [])
        return {config["config_name"]: _header_files(folder, config["data_files"]) for config in configs}
    parts = {name: {name: [folder / f"{name}.jsonl"]} for name in ("corpus", "queries")}
    parts["default"] = {path.stem: [path] for path in sorted((folder / "qrels").glob("*.jsonl"))}
    if ranked := {path.stem: [path] for path in sorted((folder / "top_ranked").glob("*.jsonl"))}:
        parts["top_ranked"] = ranked
    return parts


def _header_files(folder: Path, entries: Any) -> dict[str, list[Path]]:
    rows = [{"split": "train", "path": entries}] if isinstance(entries, str) else entries
    listed = {row["split"]: [row["path"]] if isinstance(row["path"], str) else row["path"] for row in rows}
    return {split: [path for pattern in patterns for path in (sorted(folder.glob(pattern)) or [folder / pattern])] for split, patterns in listed.items()}


def _search_part(
    folder: Path, parts: Mapping[str, Mapping[str, list[Path]]], part: str, split: str, look: Look | None = None
) -> list[dict[str, Any]]:
    """The rows of one part: those of the split where there are several, else of its only file."""
    splits = parts.get(part, {})
    names = {"default": f"qrels/{split}.jsonl"}.get(part, f"{part}.jsonl")
    if not splits or (split not in splits and len(splits) > 1):
        raise UsageError(f"{folder} has no {names}: a retrieval set needs corpus.jsonl, queries.jsonl and qrels/{split}.jsonl")
    rows: list[dict[str, Any]] = []
    for path in splits.get(split) or next(iter(splits.values())):
        for number, row in enumerate(read_jsonl(path), 1):
            _require(path, row, SEARCH_COLUMNS[part], f"the {part.replace('default', 'judgements')} of a retrieval set")
            if look is not None:
                look.at(path, number, "text", " ".join(str(row.get(name) or "") for name in ("title", "text")))  # as mteb joins them
            rows.append(row)
    if not rows:
        raise SpeedlitError(f"{folder}: {names} is empty")
    return rows
