"""Training triplets of a data source: the run's own where it has them, else made from its models and prompts, without a question to the teacher.

A source is a writer of records (``junior``, ``senior``, ``control``, ``teacher``), with ``+revisor`` behind it where the revisor went over what it
wrote. ``refined`` is the senior with the revisor. What is made lies in ``study/data``, in a folder named by the hash of what it is made from.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from speedlit.context import Backend, Context
from speedlit.errors import SpeedlitError, UsageError
from speedlit.files import content_id, read_object, remove, sha256_file, write_json
from speedlit.pipeline.loop import COMPARED, REVISION, SAMPLING
from speedlit.pipeline.services import FOLDERS
from speedlit.pipeline.stage import config_slice
from speedlit.study.room import Room

MADE = "made.json"
REVISED = "+revisor"
WRITERS = {"senior": "senior", "junior": "junior", "control": "senior", "teacher": "seed"}  # and the stage that leaves the writer, or its records
KINDS = (*WRITERS, "refined", *(f"{name}{REVISED}" for name in ("junior", "control")))
RECORDS = {"senior": ("synthesis", "records-senior.jsonl"), "teacher": ("seed", "records.jsonl")}


def triplets(room: Room, source: str) -> Path:
    """The file of a source's triplets.

    Raises:
        UsageError: no such source, or the run lacks what it needs.
    """
    if source not in KINDS:
        raise UsageError(f"no data source is called {source!r}; choose among {', '.join(KINDS)}")
    room.need("dataset")
    own = room.inputs["dataset"] / f"triplets-{source}.jsonl"
    if own.is_file():
        return own
    writer, _, revised = source.partition("+")
    room.need(WRITERS[writer], *(["revisor"] if revised else []))
    model = room.root / "stages" / FOLDERS[writer] if writer in FOLDERS else None
    if model is not None and not model.is_dir():
        raise UsageError(f"the source {source} needs the {writer}, which this run has not trained: set `control: true` and run again with --from senior")
    return made(room, source.replace(REVISED, "-revised"), writer, model, bool(revised))


def made(room: Room, name: str, writer: str, model: Path | None, revised: bool) -> Path:
    """Triplets that a study makes itself: written (or read from the run), revised where asked for, and sifted as the stage ``dataset`` does it.

    Args:
        name: of the folder.
        writer: whose sampling settings are used.
        model: the generator's folder.
        revised: let the run's revisor go over the records.
    """
    inputs = {stage: sha256_file(room.inputs[stage] / "manifest.json") for stage in ("tasks", "dataset", *(["revisor"] if revised else []))}
    settings = config_slice(room.config, (*SAMPLING, *REVISION, *COMPARED, "filters", "prompts"))
    weights = sorted(model.glob("*.safetensors")) if model is not None else []
    made_from = content_id([writer, revised, inputs, settings, [[path.name, sha256_file(path)] for path in weights]])
    out = room.folder / "data" / f"{name}-{made_from}"
    if not (out / MADE).is_file():
        room.say(f"study {room.kind}: the data of {name}")
        counts = build(room, out, writer, model, revised)
        write_json(out / MADE, {"id": made_from, **counts})
    return out / str(read_object(out / MADE, "triplets")["triplets"])


def build(room: Room, out: Path, writer: str, model: Path | None, revised: bool) -> dict[str, Any]:
    """Fill the folder of a source; what an interrupted attempt has sampled stays."""
    from speedlit.synthesis.stages import dataset

    made_inputs = {"synthesis": out / "synthesis", "refinement": out / "refinement"}
    ctx = written(room, out, writer, model)
    if revised:
        refine(room, out, made_inputs, model)
    source = dataset.MAIN if revised else ("teacher" if writer == "teacher" else "senior")
    data = room.context(out, inputs=made_inputs)
    (out / "refinement").mkdir(exist_ok=True)
    (out / "refinement" / "revisions.jsonl").touch()
    work = out / dataset.WORK
    remove(work)
    work.mkdir(parents=True)
    protected = dataset.evaluation_texts(data)
    dataset.join(data, work)
    found = dataset.sieve(data, source, protected)
    if not len(found.kept):
        raise SpeedlitError(f"the filters leave nothing of the data in {out}: loosen `filters`, or leave this variant out")
    dataset.write(data, source, found.table[found.kept])
    remove(out / "work")
    remove(out / "shards")
    ledger = ctx.ledger
    return {
        "triplets": f"triplets-{source}.jsonl",
        "kept": len(found.kept),
        "generated": ledger.generated,
        "accepted": ledger.accepted,
        "rejected": dict(sorted(ledger.rejected.items())),
    }


def written(room: Room, out: Path, writer: str, model: Path | None) -> Context:
    """Let the writer answer the run's data prompts, unless the run has its records; the context holds the counts."""
    from speedlit.synthesis.stages.common import count_of, prompts_of, sample, write_requests
    from speedlit.synthesis.stages.synthesis import DATA

    if writer in RECORDS:
        stage, file = RECORDS[writer]
        room.need(stage)
        if writer != "teacher":
            copy(room.inputs[stage] / file, out / "synthesis" / "records-senior.jsonl")
        return room.context(out)
    assert model is not None
    folder = out / "synthesis"
    folder.mkdir(parents=True, exist_ok=True)
    with closing(generator(room, writer, model)) as backend:
        ctx = room.context(folder, lambda role: backend)
        sample(ctx, writer, writer, write_requests(ctx, writer, prompts_of(ctx, *DATA)), count_of(ctx, *DATA), suffix="-senior")
    return ctx


def refine(room: Room, out: Path, inputs: dict[str, Path], model: Path | None) -> None:
    """Let the run's revisor go over the records; the guard asks the writer, not the senior."""
    from speedlit.generation.scoring import sequence_logps
    from speedlit.synthesis.stages import refinement

    sampling = room.config["sampling"]

    def likelihood(role: str, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        assert model is not None
        return sequence_logps(model, prompts, answers, sampling["batch_size"], sampling["dtype"])

    folder = inputs["refinement"]
    folder.mkdir(parents=True, exist_ok=True)
    with closing(generator(room, "revisor", room.root / "stages" / FOLDERS["revisor"])) as backend:
        refinement.run(room.context(folder, lambda role: backend, inputs=inputs, likelihood=likelihood))


def generator(room: Room, role: str, model: Path) -> Backend:
    """A generator in this process, or behind the run's own server of generators where that one has it."""
    sampling = room.config["sampling"]
    if sampling["base_url"] and model == room.root / "stages" / FOLDERS.get(role, ""):
        return room.services.backend(role)
    from speedlit.generation.local import LocalBackend

    return LocalBackend(model, batch_size=sampling["batch_size"], processes=sampling["processes"], dtype=sampling["dtype"])


def copy(source: Path, target: Path) -> None:
    """A file under another name, without its bytes twice where the disk can do that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    remove(target)
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)
