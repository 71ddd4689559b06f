"""A cell of a study: one embedder trained on some triplets with one seed, and what it scores.

A cell lies in a folder named by the hash of everything it is made from, so a rerun finds it, cells that two studies share are trained once,
and a changed input makes another cell. ``cell.json`` is written last and at once; a fit that was killed goes on from its checkpoint.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from speedlit.errors import UsageError
from speedlit.files import content_id, read_json, read_object, remove, sha256_file, write_json
from speedlit.pipeline.parallel import in_processes
from speedlit.pipeline.stage import mark, model_mark
from speedlit.pipeline.training import job, own_negatives
from speedlit.pipeline.yamlfiles import merge
from speedlit.records import Triplet, read_rows
from speedlit.study.longtail import score_queries
from speedlit.study.room import Room
from speedlit.synthesis.hashing import order_key

CELL = "cell.json"


@dataclass(frozen=True)
class Cell:
    """What is trained.

    Args:
        labels: what the study calls it: size, variant, model, seed.
        triplets: file of training triplets.
        take: how many of them.
        seed: of the fit.
        draw: seed of the hash order in which they are taken; None takes the file's own order.
        over: keys laid over the embedder's recipe.
    """

    labels: Mapping[str, Any]
    triplets: Path
    take: int
    seed: int
    draw: int | None = None
    over: Mapping[str, Any] = field(default_factory=dict)


def perform(room: Room, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Train and score what is not there yet; results come in the order of the cells."""
    jobs = [described(room, cell) for cell in cells]
    missing = {one["id"]: one for one in jobs if not finished(one)}
    known = len(jobs) - sum(one["id"] in missing for one in jobs)
    room.say(f"study {room.kind}: {len(jobs)} cells, {known} of them there already" if known else f"study {room.kind}: {len(jobs)} cells")
    if missing:
        in_processes("speedlit.study.cells:train_and_score", list(missing.values()), min(room.study["processes"], len(missing)), room.kind, "cells")
    return [{**cell.labels, **result_of(Path(one["folder"]) / CELL)} for cell, one in zip(cells, jobs, strict=True)]


def result_of(path: Path) -> dict[str, Any]:
    """What a cell has scored.

    Raises:
        UsageError: the file is damaged, or a score is no number.
    """
    found = read_object(path, "score", "tasks", "queries", "seconds", "cpu_seconds")
    scores = [found["score"], *found["tasks"].values()] if isinstance(found["tasks"], dict) else []
    if len(scores) < 2 or not all(isinstance(score, (int, float)) and math.isfinite(score) for score in scores):
        raise UsageError(f"{path} is damaged (a score is no number); remove its folder, and the study trains this cell again")
    return found


def finished(one: Mapping[str, Any]) -> bool:
    """Whether a cell's result is there."""
    path = Path(one["folder"]) / CELL
    return path.is_file() and read_object(path).get("id") == one["id"]


def described(room: Room, cell: Cell) -> dict[str, Any]:
    """The arguments of ``train_and_score``."""
    over: dict[str, Any] = {"seed_everything": cell.seed, "data": {"init_args": {"seed": cell.seed}}, **own_negatives(room.context())}
    if room.study["steps"]:
        over["trainer"] = {"max_steps": room.study["steps"]}
    config = merge(job(room.context(), "embedder", Path("shards"), [], room.folder)["config"], merge(over, dict(cell.over)))
    made_from = {
        "config": without_place(config),
        "base": known_model(config["model"]["init_args"]["backbone"]["name"]),
        "data": [file_digest(cell.triplets), cell.take, cell.draw],
        "evaluation": room.evaluation_mark(),
    }
    name = content_id(made_from)
    return {
        "id": name,
        "folder": str(room.folder / "cells" / name),
        "config": config,
        "triplets": str(cell.triplets),
        "take": cell.take,
        "draw": cell.draw,
        "evaluation": room.evaluation(),
        "probe": str(room.probe_file()),
    }


def without_place(config: Mapping[str, Any]) -> dict[str, Any]:
    """A fit's config without the name of its base, which may be a place of this machine."""
    return merge(dict(config), {"model": {"init_args": {"backbone": {"name": None}}}})


def known_model(name: str) -> Any:
    """What tells a base model from another: digests of a small folder's files, else what the pipeline goes by; a hub id is its name."""
    folder = Path(name)
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("config.json")) if folder.is_dir() else []
    if files and sum(path.stat().st_size for path in files) < 64 << 20:
        return [[path.name, file_digest(path)] for path in files]
    return model_mark(name) or name


def file_digest(path: Path) -> str:
    """sha256 of a file, read again only when its size or time has changed."""
    return digest_of(str(path), *mark(path))


@lru_cache(maxsize=256)
def digest_of(path: str, size: int, time_ns: int) -> str:
    """sha256 of a file as it is at this size and time."""
    return sha256_file(Path(path))


def train_and_score(
    id: str,
    folder: str,
    config: dict[str, Any],
    triplets: str,
    take: int,
    draw: int | None,
    evaluation: dict[str, Any],
    probe: str,
    progress: bool = True,
) -> dict[str, Any]:
    """One cell, callable in a fresh process; writes ``cell.json``."""
    import torch

    from speedlit.data.shards import write_shards
    from speedlit.evaluation.folders import open_encoder
    from speedlit.evaluation.run import evaluate
    from speedlit.evaluation.state import same_randomness
    from speedlit.evaluation.tasks import load_tasks
    from speedlit.pipeline.fitting import fit

    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    start, cpu = time.monotonic(), time.process_time()
    if not (out / "shards" / "manifest.json").is_file():
        write_shards(subset(Path(triplets), take, draw), out / "shards", "contrastive")
    fitted = fit(merge(config, {"data": {"init_args": {"shards": str(out / "shards")}}}), out / "fit", progress=progress)
    with same_randomness():
        encoder = open_encoder(fitted["model"], device="cuda" if torch.cuda.is_available() else "cpu")
        scores = evaluate(encoder, load_tasks(evaluation["tasks"] or None, evaluation["data"]))
    result = {
        "id": id,
        "score": 100 * sum(scores.values()) / len(scores),
        "tasks": {task: 100 * score for task, score in scores.items()},
        "queries": score_queries(encoder, read_json(Path(probe))),
        "triplets": take,
        "steps": fitted["steps"],
        "loss": fitted["final"].get("train/loss"),
        "seconds": round(time.monotonic() - start, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }
    write_json(out / CELL, result)
    for name in ("shards", "fit/checkpoints"):
        remove(out / name)
    return result


def subset(triplets: Path, take: int, draw: int | None) -> Iterator[dict[str, Any]]:
    """Rows of training shards: the first ``take`` triplets of the file or of a hash order. A smaller subset is the beginning of a larger one."""
    found = read_rows(triplets, Triplet)
    if draw is not None:
        found = iter(sorted(found, key=lambda t: order_key("study", draw, t.record_id)))
    for t in itertools.islice(found, take):
        yield {"id": t.id, "kind": t.kind, "instruction": t.instruction, "query": t.query, "positive": t.positive, "negatives": t.negatives}


def count_of(triplets: Path) -> int:
    """How many triplets a file has."""
    with triplets.open("rb") as stream:
        return sum(1 for line in stream if line.strip())
