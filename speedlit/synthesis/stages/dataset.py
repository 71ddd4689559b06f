"""Stage ``dataset``: records become triplets and shards; doubles and everything near the evaluation is left out.

Where sources are compared, each gives equally many triplets. All sources follow one order of prompts, so smaller sets are the
beginnings of larger ones, and two sources hold samples of mostly the same prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speedlit.context import Context
from speedlit.errors import SpeedlitError
from speedlit.files import remove, write_json, write_jsonl
from speedlit.records import Prompt, Record, Revision, Task, Triplet, read_rows, write_rows
from speedlit.synthesis.filters import ContaminationFilter, ExactFilter, NearFilter, texts_in
from speedlit.synthesis.quality import measure
from speedlit.synthesis.stages.common import prompts_of

FILES = {
    "junior": ("synthesis", "records-junior.jsonl"),
    "senior": ("synthesis", "records-senior.jsonl"),
    "control": ("synthesis", "records-control.jsonl"),
    "refined": ("refinement", "records.jsonl"),
    "teacher": ("seed", "records.jsonl"),
}
MAIN = "refined"  # what the loop is for


def run(ctx: Context) -> None:
    """Write ``triplets-S.jsonl`` and ``shards/S`` for each source S, and ``dropped.jsonl`` ({source, record_id, reason}).

    Raises:
        SpeedlitError: the filters leave nothing of a source.
    """
    from speedlit.data.shards import write_shards

    prompts = {prompt.id: prompt for prompt in prompts_of(ctx, "synthetic", "seed")}
    topic_of = {task.id: task.topic_id for task in read_rows(ctx.inputs["tasks"] / "tasks.jsonl", Task)}
    protected = evaluation_texts(ctx)
    compared = ctx.config["comparison"]["sources"]
    sources = list(dict.fromkeys([*compared, MAIN]))
    dropped: list[dict[str, Any]] = []
    kept = {source: list(clean(ctx, source, prompts, protected, dropped)) for source in sources}
    for source, records in kept.items():
        if not records:
            raise SpeedlitError(f"dataset: nothing is left of the source {source}; {ctx.out / 'dropped.jsonl'} says why: loosen `filters` or synthesise more")
    limits = [ctx.config["counts"].get("embedder"), min(map(len, kept.values())) if compared else None]
    limit = min((limit for limit in limits if limit), default=None)
    revision_of = revisions(ctx)
    for source, records in kept.items():
        triplets = [triplet(record, prompts[record.prompt_id], topic_of, source, revision_of) for record in records[:limit]]
        ctx.ledger.notes[source] = {"records": len(records), "triplets": len(triplets), "quality": measure(records[:limit])}
        ctx.ledger.accepted += write_rows(ctx.out / f"triplets-{source}.jsonl", triplets)
        remove(ctx.out / "shards" / source)  # of an interrupted attempt
        (ctx.out / "shards").mkdir(exist_ok=True)
        write_shards((row(t) for t in triplets), ctx.out / "shards" / source, "contrastive")
    write_jsonl(ctx.out / "dropped.jsonl", dropped)


def evaluation_texts(ctx: Context) -> ContaminationFilter | None:
    """The texts that must not be in the data: local evaluation files, or the tasks rendered from the world's held-out cells."""
    size, settings = ctx.config["filters"].get("ngram"), ctx.config["evaluation"]
    folder = Path(settings["data"]) if settings.get("data") else None
    if folder is None and not settings.get("tasks") and ctx.checker is not None:
        folder = ctx.out / "evaldata"
        cells = sorted({task.group for task in read_rows(ctx.inputs["tasks"] / "tasks.jsonl", Task) if task.split == "test"})
        unpack(ctx.checker("evaluation", {"cells": cells, "seed": ctx.config["seed"], "sizes": {}})["files"], folder)
    if folder is None or not size:
        ctx.ledger.notes["decontamination"] = "off: filters.ngram is null" if folder else "off: no local evaluation texts (evaluation.data)"
        return None
    found = ContaminationFilter(texts_in(folder), size)
    ctx.ledger.notes["decontamination"] = {"words": size, "texts": found.texts}
    return found


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


def clean(ctx: Context, source: str, prompts: dict[str, Prompt], protected: ContaminationFilter | None, dropped: list[dict[str, Any]]) -> Iterator[Record]:
    """Yield the records of a source that pass all filters, in the order of the run's seed; the others go to ``dropped``."""
    stage, name = FILES[source]
    records = [record for record in read_rows(ctx.inputs[stage] / name, Record) if record.prompt_id in prompts]
    records.sort(key=lambda r: (hashlib.sha256(f"{ctx.config['seed']}:{r.prompt_id}".encode()).digest(), r.index))
    settings = ctx.config["filters"]
    exact = ExactFilter() if settings.get("exact", True) else None
    near = NearFilter(settings["minhash_threshold"]) if settings.get("minhash_threshold") else None
    for record in records:
        reason = fault(record, exact, near, protected)
        if reason:
            ctx.ledger.reject(f"{source}:{reason}")
            dropped.append({"source": source, "record_id": record.id, "reason": reason})
        else:
            yield record


def fault(record: Record, exact: ExactFilter | None, near: NearFilter | None, protected: ContaminationFilter | None) -> str:
    """Why a record is left out, or ""."""
    if record.positive in record.negatives:
        return "negative_equals_positive"
    text = f"{record.query}\n{record.positive}"
    if exact and exact.is_duplicate("\n".join([text, *record.negatives])):
        return "duplicate"
    if protected and protected.is_contaminated(record.query, record.positive, *record.negatives):
        return "contaminated"
    return "near_duplicate" if near and near.is_duplicate(text) else ""


def revisions(ctx: Context) -> dict[str, str]:
    """Refined record id -> id of the revision that made it (the two files of ``refinement`` go row by row)."""
    folder = ctx.inputs["refinement"]
    pairs = zip(read_rows(folder / "records.jsonl", Record), read_rows(folder / "revisions.jsonl", Revision), strict=True)
    return {record.id: revision.id for record, revision in pairs}


def triplet(record: Record, prompt: Prompt, topic_of: dict[str, str], source: str, revision_of: dict[str, str]) -> Triplet:
    """What the embedder reads, with the ids of everything it came from."""
    lineage = {"topic": topic_of[prompt.task_id], "task": prompt.task_id, "prompt": prompt.id, "generation": record.generation_id, "record": record.id}
    if source == "refined":
        lineage["revision"] = revision_of[record.id]
    return Triplet(record.id, record.kind, record.instruction, record.query, record.positive, record.negatives, source, lineage)


def row(t: Triplet) -> dict[str, Any]:
    """A shard's sample."""
    return {"id": t.id, "kind": t.kind, "instruction": t.instruction, "query": t.query, "positive": t.positive, "negatives": t.negatives}
