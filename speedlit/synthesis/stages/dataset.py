"""Stage ``dataset``: records become triplets and shards; doubles and everything near the evaluation is left out.

Where sources are compared, each gives equally many triplets. All sources follow one order of prompts, so smaller sets are the
beginnings of larger ones, and two sources hold samples of mostly the same prompts.

Built for a million records: worker processes read and write, ids are joined in sorted arrays (``work/*.npy``), and what is decided
does not depend on how many processes there are.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from speedlit.context import Context
from speedlit.errors import SpeedlitError, UsageError
from speedlit.files import atomic, canonical_json, disk_error, remove, write_json, write_jsonl
from speedlit.progress import Progress
from speedlit.records import Prompt, Record, Task, Triplet, read_rows
from speedlit.synthesis.filters import ContaminationFilter, texts_in
from speedlit.synthesis.lines import Lines, Stretch, number, rows, spelled, stretches
from speedlit.synthesis.quality import Measures
from speedlit.synthesis.quality.alarms import Figure, judged
from speedlit.synthesis.quality.measures import SAMPLE
from speedlit.synthesis.sieve import CONTAMINATED, Sieve, Sieved, Table, sift, spilled
from speedlit.synthesis.stages.common import note_quality
from speedlit.synthesis.stages.inspection import inspect
from speedlit.workers import in_order

FILES = {
    "junior": ("synthesis", "records-junior.jsonl"),
    "senior": ("synthesis", "records-senior.jsonl"),
    "control": ("synthesis", "records-control.jsonl"),
    "refined": ("refinement", "records.jsonl"),
    "teacher": ("seed", "records.jsonl"),
}
MAIN = "refined"  # what the loop is for
PART = 16 << 20  # bytes of records in one chunk of the shards
WORK = Path("work", "sieve")  # below the stage's folder
NAMED = 100  # contaminated records that the ledger names; dropped.jsonl names all


def run(ctx: Context) -> None:
    """Write ``triplets-S.jsonl`` and ``shards/S`` for each source S, and ``dropped.jsonl`` ({source, record_id, reason}).

    Raises:
        SpeedlitError: the filters leave nothing of a source.
    """
    try:
        build(ctx)
    except OSError as error:
        raise disk_error(error, ctx.out) from error


def build(ctx: Context) -> None:
    """The stage itself."""
    work = ctx.out / WORK
    remove(work)  # of an interrupted attempt
    work.mkdir(parents=True)
    protected = evaluation_texts(ctx)
    join(ctx, work)
    compared = ctx.config["comparison"]["sources"]
    found = {source: sieve(ctx, source, protected) for source in dict.fromkeys([*compared, MAIN])}
    write_jsonl(ctx.out / "dropped.jsonl", dropped(ctx, found))
    for source, sieved in found.items():
        if not len(sieved.kept):
            raise SpeedlitError(f"dataset: nothing is left of the source {source}; {ctx.out / 'dropped.jsonl'} says why: loosen `filters` or synthesise more")
    limits = [ctx.config["counts"].get("embedder"), min(len(sieved.kept) for sieved in found.values()) if compared else None]
    limit = min((limit for limit in limits if limit), default=None)
    for source, sieved in found.items():
        table = sieved.table[sieved.kept][:limit]
        ctx.ledger.notes[source] = {"records": len(sieved.kept), "triplets": len(table)}
        removed = Figure(1 - len(sieved.kept) / len(sieved.table), len(sieved.table))
        verdicts = inspected(ctx, source, table) if source == MAIN else {"alarms": []}
        note_quality(ctx, source, quality(ctx, source, table), judged({"removed": removed}, ctx.config.get("quality")), verdicts)
        write(ctx, source, table)
        ctx.ledger.accepted += len(table)
    remove(work)


def sieve(ctx: Context, source: str, protected: Path | None) -> Sieved:
    """Decide which records of a source stay."""
    stage, file = FILES[source]
    work = ctx.out / WORK
    settings = Sieve(ctx.inputs[stage] / file, work / source, ctx.config["seed"], ctx.config["filters"], work / "prompts.npy", protected)
    return sift(settings, f"dataset: reading {source}")


def dropped(ctx: Context, found: Mapping[str, Sieved]) -> Iterator[dict[str, Any]]:
    """Every record that is left out, counted in the ledger as well."""
    named: list[str] = []
    for source, sieved in found.items():
        for record, reason in sieved.dropped():
            ctx.ledger.reject(f"{source}:{reason}")
            if reason == CONTAMINATED and len(named) < NAMED:
                named.append(spelled(record))
            yield {"source": source, "record_id": spelled(record), "reason": reason}
    if isinstance(note := ctx.ledger.notes["decontamination"], dict):
        note |= {"dropped": sum(ctx.ledger.rejected[f"{source}:{CONTAMINATED}"] for source in found), "first_ids": named}


def evaluation_texts(ctx: Context) -> Path | None:
    """Hashes of the texts that must not be in the data: those of the evaluation tasks by name and of the local files; without either, of the
    tasks rendered from the world's held-out cells. None where the filter is off, or where nothing is evaluated.

    Raises:
        UsageError: the texts cannot be had.
    """
    size, settings = ctx.config["filters"].get("ngram"), ctx.config["evaluation"]
    folder, names = Path(settings["data"]) if settings.get("data") else None, settings.get("tasks") or []
    if folder is None and not names and ctx.checker is not None:
        folder = ctx.out / "evaldata"
        cells = sorted({task.group for task in read_rows(ctx.inputs["tasks"] / "tasks.jsonl", Task) if task.split == "test"})
        unpack(ctx.checker("evaluation", {"cells": cells, "seed": ctx.config["seed"], "sizes": {}})["files"], folder)
    if not size:
        ctx.ledger.notes["decontamination"] = "off: filters.ngram is null"
        return None
    if folder is None and not names:
        ctx.ledger.notes["decontamination"] = "no evaluation task is in use, so there is nothing to keep out"
        print("  dataset: no evaluation task is named (evaluation.tasks, evaluation.data), so no text is kept out of the data", file=sys.stderr, flush=True)
        return None
    found = ContaminationFilter(itertools.chain(texts_in(folder) if folder else (), named_texts(ctx, names, folder)), size)
    if not found.texts:
        raise UsageError(f"there is no text in {folder or ', '.join(names)}, only empty files: mend evaluation.data, or set filters.ngram to null")
    ctx.ledger.notes["decontamination"] = {"words": size, "texts": found.texts}
    path = ctx.out / WORK / "protected.npy"
    found.save(path)
    return path


def named_texts(ctx: Context, names: Sequence[str], folder: Path | None) -> Iterable[str]:
    """The texts of evaluation tasks by name, as far as the folder does not hold them.

    Raises:
        UsageError: nothing here can load them.
    """
    if names and ctx.evaluation_texts is None:
        raise UsageError("the texts of evaluation.tasks cannot be had here: name a folder that holds them with evaluation.data, or set filters.ngram to null")
    return ctx.evaluation_texts(names, folder) if names and ctx.evaluation_texts else ()


def unpack(files: dict[str, Any], folder: Path) -> None:
    """Write the checker's evaluation files: lists of objects as JSON lines, other values as JSON, texts as they are."""
    remove(folder)
    for name, content in files.items():
        path = folder / name
        if folder.resolve() not in path.resolve().parents:
            raise SpeedlitError(f"the teacher's evaluation files hold the name {name!r}, which leads out of the folder: use another teacher")
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jsonl") and isinstance(content, list):
            write_jsonl(path, content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            write_json(path, content)


# ---- joins: ids as numbers in sorted arrays ----------------------------------------------------------------------------------------


def join(ctx: Context, work: Path) -> None:
    """Write what a triplet's lineage needs: task and place of each prompt, topic of each task, and the revision of each refined record.

    ``refinement`` writes a record and its revision row by row.
    """
    prompts = columns(ctx.inputs["tasks"] / "prompts.jsonl", prompt_columns, "dataset: prompts")
    prompts = prompts[:, np.argsort(prompts[0], kind="stable")]
    for column, file in enumerate(("prompts", "prompt-tasks", "prompt-lines")):
        np.save(work / f"{file}.npy", prompts[column])
    tasks = columns(ctx.inputs["tasks"] / "tasks.jsonl", task_columns, "dataset: tasks")
    tasks = tasks[:, np.argsort(tasks[0], kind="stable")]
    np.save(work / "tasks.npy", tasks[0])
    np.save(work / "task-topics.npy", tasks[1])
    np.save(work / "revisions.npy", columns(ctx.inputs["refinement"] / "revisions.jsonl", revision_columns, "dataset: revisions")[0])


def columns(path: Path, function: Any, label: str) -> Any:
    """Columns of numbers out of a whole file, stretch by stretch in worker processes."""
    cut = stretches(path)
    with Progress(label, len(cut), "stretches") as progress:
        found = []
        for part in in_order(partial(function, path), cut):
            found.append(part)
            progress.advance()
    return np.concatenate(found, axis=1) if found else np.zeros((3, 0), np.uint64)


def prompt_columns(path: Path, stretch: Stretch) -> Any:
    """Id, task and first byte of each prompt that data are made from."""
    found = [(number(row.get("id")), number(row.get("task_id")), line) for line, row in rows(path, stretch) if row.get("use") in ("synthetic", "seed")]
    return np.array(found, np.uint64).reshape(-1, 3).T


def task_columns(path: Path, stretch: Stretch) -> Any:
    """Id and topic of each task."""
    return np.array([(number(row.get("id")), number(row.get("topic_id"))) for _, row in rows(path, stretch)], np.uint64).reshape(-1, 2).T


def revision_columns(path: Path, stretch: Stretch) -> Any:
    """Id of each revision."""
    return np.array([(number(row.get("id")),) for _, row in rows(path, stretch)], np.uint64).reshape(-1, 1).T


# ---- writing: one chunk of the shards per job --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Some triplets that follow each other: where the working files are, which source, which of the parts, and the rows."""

    work: Path
    source: str
    number: int
    table: Table

    @property
    def path(self) -> Path:
        """The part's own file of triplets."""
        return self.work / self.source / f"triplets-{self.number}.jsonl"


def write(ctx: Context, source: str, table: Table) -> None:
    """Write the triplets of a source, in order, and their shards."""
    from speedlit.data.shards import write_chunks

    (ctx.out / "shards").mkdir(exist_ok=True)
    out = ctx.out / "shards" / source
    remove(out)  # of an interrupted attempt
    ends = np.cumsum(table["bytes"], dtype=np.int64)
    pieces = np.split(table, np.flatnonzero(np.diff(ends // PART)) + 1)
    parts = [Part(ctx.out / WORK, source, i, piece) for i, piece in enumerate(pieces)]
    with Progress(f"dataset: writing {source}", len(parts), "chunks") as progress:
        write_chunks(parts, triplet_rows, out, "contrastive", lambda _: progress.advance())
    with atomic(ctx.out / f"triplets-{source}.jsonl") as stream:
        for part in parts:
            with part.path.open(encoding="utf-8", newline="") as lines:
                while block := lines.read(1 << 20):
                    stream.write(block)
            part.path.unlink()


def triplet_rows(part: Part) -> Iterator[dict[str, Any]]:
    """The shard's rows of a part; writes the part's triplets on the way."""
    records = spilled(part.work / part.source, part.table)
    with part.path.open("w", encoding="utf-8") as stream:
        for (kind, instruction, query, positive, negatives, generation), ids in zip(records, lineages(part), strict=True):
            lineage = {**ids, "generation": generation}
            t = Triplet(lineage["record"], kind, instruction, query, positive, negatives, part.source, lineage)
            stream.write(canonical_json(t.to_json()) + "\n")
            yield {"id": t.id, "kind": kind, "instruction": instruction, "query": query, "positive": positive, "negatives": negatives}


def lineages(part: Part) -> Iterator[dict[str, str]]:
    """The ids that each triplet came from: topic, task, prompt, record and, for refined records, revision."""
    files = ("prompts", "prompt-tasks", "tasks", "task-topics", "revisions")
    prompts, tasks_of, tasks, topics_of, revisions = (np.load(part.work / f"{file}.npy", mmap_mode="r") for file in files)
    task = tasks_of[np.searchsorted(prompts, part.table["prompt"])]
    found = {"topic": topics_of[np.searchsorted(tasks, task)], "task": task, "prompt": part.table["prompt"], "record": part.table["id"]}
    if part.source == MAIN:
        found["revision"] = revisions[part.table["row"]]
    for values in zip(*(column.tolist() for column in found.values()), strict=True):
        yield dict(zip(found, map(spelled, values), strict=True))


def quality(ctx: Context, source: str, table: Table) -> dict[str, Any]:
    """The measures of the triplets' records: of all, or of those texts with the smallest hashes, a sample that no order can change."""
    texts = np.unique(table["text"])[:SAMPLE]
    measures = Measures(ctx.config.get("quality"))
    for record, prompt in read(ctx, source, table[table["text"] <= texts[-1]]):
        measures.add(record, prompt)
    return {**measures.result(), "records": len(table)}


def inspected(ctx: Context, source: str, table: Table) -> dict[str, Any]:
    """What the judge says about ``counts.inspected`` triplets; {"alarms": []} where none is asked about."""
    count = min(ctx.config["counts"].get("inspected") or 0, len(table))
    if not count:
        return {"alarms": []}
    found = read(ctx, source, table[np.argsort(table["text"], kind="stable")])
    return inspect(ctx, itertools.islice((pair for pair in found if pair[0].negatives), count), count)


def read(ctx: Context, source: str, table: Table) -> Iterator[tuple[Record, Prompt]]:
    """The records of some rows with their prompts."""
    stage, file = FILES[source]
    prompts, places = (np.load(ctx.out / WORK / f"{file}.npy", mmap_mode="r") for file in ("prompts", "prompt-lines"))
    with Lines(ctx.inputs[stage] / file) as records, Lines(ctx.inputs["tasks"] / "prompts.jsonl") as texts_of:
        for row in table:
            prompt = Prompt.from_json(texts_of[int(places[np.searchsorted(prompts, row["prompt"])])])
            yield Record.from_json(records[int(row["line"])]), prompt
