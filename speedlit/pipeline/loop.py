"""The fifteen stages of the SPEED loop, in order, and the runner that skips, resumes and redoes them."""

from __future__ import annotations

import fcntl
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from speedlit.context import Context
from speedlit.errors import SpeedlitError, UsageError
from speedlit.files import read_json, read_object, write_json
from speedlit.pipeline.config import RunConfig
from speedlit.pipeline.costs import ledger
from speedlit.pipeline.preflight import ahead, check_journal, check_topics, preflight
from speedlit.pipeline.services import Services
from speedlit.pipeline.stage import Stage, begin, fingerprint, finish, state
from speedlit.progress import Progress
from speedlit.synthesis.quality.alarms import levels_of, of_stages

IDENTITY = ("name", "seed", "base", "prompts")


def lazily(module: str) -> Callable[[Context], None]:
    """``module.run``, imported when the stage starts: listing stages must not import torch."""

    def run(ctx: Context) -> None:
        import_module(module).run(ctx)

    return run


SYNTH = "speedlit.synthesis.stages."
TRAIN = "speedlit.pipeline."
TEACHER = (
    *(f"teacher.{name}" for name in ("model", "backend", "settings", "temperature", "max_tokens", "structured", "embedded")),
    "seed",
    "prompts",
)
REVISION = ("revision", "revise_fields", "revision_guard", "prompts")
COMPARED = ("counts.candidates", "counts.test_samples", "control", "comparison.sources")
SAMPLING = ("sampling.temperature", "sampling.top_p", "sampling.max_tokens", "sampling.batch_size", "sampling.dtype", "sampling.structured", "seed")


def stages() -> dict[str, Stage]:
    """All stages by name, in the order they run."""
    rows: list[tuple[str, tuple[str, ...], tuple[str, ...], str, bool]] = [
        ("topics", (), ("topics",), SYNTH + "topics", False),
        ("tasks", ("topics",), ("tasks", "counts", *TEACHER), SYNTH + "tasks", True),
        ("seed", ("tasks",), TEACHER, SYNTH + "seed", True),
        ("junior", ("tasks", "seed"), ("junior", "base", "seed"), TRAIN + "training.junior", False),
        ("candidates", ("tasks", "junior"), ("counts.candidates", *SAMPLING), SYNTH + "candidates", True),
        ("preferences", ("tasks", "candidates"), ("counts.preferences", "judge_swap", *TEACHER), SYNTH + "preferences", True),
        ("senior", ("tasks", "junior", "candidates", "preferences"), ("senior", "control", "base", "seed"), TRAIN + "training.senior", False),
        ("revisions", ("tasks", "candidates"), ("counts.revisions", "revision", *TEACHER), SYNTH + "revisions", True),
        ("revisor", ("tasks", "revisions"), ("revisor", "revision", "base", "seed", "prompts"), TRAIN + "training.revisor", False),
        ("synthesis", ("tasks", "junior", "senior"), (*COMPARED, *SAMPLING), SYNTH + "synthesis", True),
        ("refinement", ("tasks", "synthesis", "revisor", "senior"), (*REVISION, *SAMPLING), SYNTH + "refinement", True),
        (
            "dataset",
            ("tasks", "seed", "synthesis", "refinement"),
            ("filters", "counts.embedder", "counts.inspected", "evaluation", "comparison.sources", "seed"),
            SYNTH + "dataset",
            False,
        ),
        ("embedder", ("dataset",), ("embedder", "embedder_base", "base", "comparison", "evaluation", "seed"), TRAIN + "training.embedder", False),
        (
            "evaluation",
            ("tasks", "synthesis", "refinement", "dataset", "embedder"),
            ("evaluation", "comparison", "base", "embedder_base", "seed"),
            TRAIN + "assessment",
            False,
        ),
        ("report", ("evaluation",), (), TRAIN + "reporting", False),
    ]
    return {name: Stage(i, name, needs, keys, entry(target), sharded) for i, (name, needs, keys, target, sharded) in enumerate(rows, 1)}


def entry(target: str) -> Callable[[Context], None]:
    """``speedlit.pipeline.training.junior`` -> function ``junior``; ``speedlit.synthesis.stages.seed`` -> its ``run``."""
    module, _, function = target.rpartition(".")
    if module.endswith(".training"):

        def run(ctx: Context) -> None:
            getattr(import_module(module), function)(ctx)

        return run
    return lazily(target)


@dataclass
class Wanted:
    """Which stages to run: up to ``until``, redoing from ``start`` on."""

    until: str | None = None
    start: str | None = None


def run(config: RunConfig, wanted: Wanted | None = None, say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Run the loop as far as wanted and return the summary (also in ``<root>/summary.json``).

    Raises:
        UsageError: unknown stage, or a root that belongs to another config.
        SpeedlitError: a stage failed; what was finished stays.
    """
    wanted = wanted or Wanted()
    say = say or (lambda text: print(text, file=sys.stderr, flush=True))
    every, root, plain = stages(), Path(config.root), config.plain()
    select(config, wanted)
    last = every[wanted.until].number if wanted.until else len(every)
    with owned(root, plain), Services(config, root) as services, Progress(config.name, last, "stages", every=math.inf, even=False) as progress:
        for stage in every.values():
            perform(stage, every, plain, root, services, say, redo=stage.name == wanted.start)
            progress.advance(note=standing(root))
            progress.draw()
            if stage.name == wanted.until:
                break
    return summarise(root, every, plain)


def standing(root: Path) -> str:
    """What the finished stages took of the teacher, and what the last one kept."""
    path = root / "summary.json"
    summary = read_json(path) if path.exists() else {}
    total = summary.get("costs", {}).get("total", {})
    usd = total.get("usd")
    words = [f"{total['calls']:,} calls", f"{total['tokens']:,.0f} tokens"] if total.get("calls") else []
    return ", ".join([*words, *([f"${usd:,.2f}"] if usd else [])])


def select(config: RunConfig, wanted: Wanted) -> dict[str, Stage]:
    """The stages up to ``until``, looked at for what can be known to fail: before anything is asked of the teacher, and before the root is this config's.

    Raises:
        UsageError: unknown stage, no topics, an emptied journal, or a training stage that cannot be.
    """
    every, root, plain = stages(), Path(config.root), config.plain()
    for flag, name in (("--until", wanted.until), ("--from", wanted.start)):
        if name is not None and name not in every:
            raise UsageError(f"{flag} {name}: no such stage; the stages are {' '.join(every)}")
    if wanted.start and wanted.until and every[wanted.start].number > every[wanted.until].number:
        raise UsageError(f"--from {wanted.start} comes after --until {wanted.until}; nothing would be run")
    check_topics(every["topics"], plain, root)
    check_journal(every.values(), root)
    to_train = ahead(every.values(), plain, root, wanted.until, wanted.start)
    if to_train:
        preflight(to_train, plain)
    last = every[wanted.until].number if wanted.until else len(every)
    return {name: stage for name, stage in every.items() if stage.number <= last}


def run_stage(config: RunConfig, name: str, shard: tuple[int, int] = (0, 1), say: Callable[[str], None] | None = None) -> None:
    """Run one stage whose inputs are finished, or one shard of it.

    A shard fills the journal and the part files; the same stage without a shard then finds every answer and puts them together.

    Raises:
        UsageError: no such stage, one that it reads is not finished, an emptied journal, or it cannot be cut into shards.
    """
    say = say or (lambda text: print(text, file=sys.stderr, flush=True))
    every, root, plain = stages(), Path(config.root), config.plain()
    if name not in every:
        raise UsageError(f"no stage {name!r}; there are {' '.join(every)}")
    stage = every[name]
    whole = shard == (0, 1)
    if not whole and not stage.sharded:
        raise UsageError(f"{name} is one piece of work; run it without --shard")
    check_journal(every.values(), root)
    with owned(root, plain, shard), Services(config, root, shard) as services:
        for need in stage.needs:
            if not (every[need].folder(root) / "_SUCCESS").exists():
                raise UsageError(f"{name} reads the stage {need}, which is not finished in {root}; run `speedlit run --until {need}` first")
        if whole:
            perform(stage, every, plain, root, services, say)
            return
        made_from = fingerprint(stage, plain, root, every)
        folder = begin(stage, made_from, root, fresh=False)
        ctx = context(stage, every, plain, root, services, folder, shard)
        ctx.out = folder / "work" / f"shard-{shard[0]}-of-{shard[1]}"
        ctx.out.mkdir(parents=True, exist_ok=True)
        stage.run(ctx)
        say(f"{name} {shard[0]}/{shard[1]}: {outcome(ctx)}")


def perform(
    stage: Stage, every: dict[str, Stage], plain: dict[str, Any], root: Path, services: Services, say: Callable[[str], None], redo: bool = False
) -> None:
    """Bring one stage to its finished state."""
    made_from = fingerprint(stage, plain, root, every)
    now = state(stage, made_from, root)
    if now.startswith("damaged") and not redo:
        raise SpeedlitError(f"{stage.name}:{now[len('damaged:') :]}; put the file back, or redo the stage and what depends on it with --from {stage.name}")
    label = f"[{stage.number:2d}/{len(every)}] {stage.name}"
    if now == "done" and not redo:
        say(f"{label}: already done")
        return
    why = {"half": "going on where it was interrupted", "new": ""}.get(now, "")
    if redo:
        why = "asked for with --from"
    elif now.startswith("stale"):
        why = "again, since" + now[len("stale:") :]
    say(label + (f" ({why})" if why else ""))
    folder = begin(stage, made_from, root, fresh=redo or now.startswith("stale"))
    ctx = context(stage, every, plain, root, services, folder)
    start = time.monotonic()
    earlier = read_seconds(folder)
    try:
        stage.run(ctx)
    finally:
        seconds = earlier + time.monotonic() - start
        if folder.is_dir():
            (folder / "work").mkdir(exist_ok=True)
            write_json(folder / "work" / "seconds.json", {"seconds": seconds})
        services.release()
    finish(stage, made_from, ctx, seconds)
    summarise(root, every, plain)
    say(f"{label}: {outcome(ctx)} in {seconds:.1f} s")


def context(
    stage: Stage, every: dict[str, Stage], plain: dict[str, Any], root: Path, services: Services, out: Path, shard: tuple[int, int] = (0, 1)
) -> Context:
    """What the stage's function is given."""
    inputs = {name: every[name].folder(root) for name in every if name != stage.name and every[name].number < stage.number}
    return Context(stage.name, out, inputs, plain, root, services.backend, services.checker(), shard, services.likelihood, services.evaluation_texts)


def read_seconds(folder: Path) -> float:
    """Seconds that earlier, interrupted attempts at this folder took."""
    path = folder / "work" / "seconds.json"
    return float(read_json(path)["seconds"]) if path.exists() else 0.0


def outcome(ctx: Context) -> str:
    """``2000 accepted, 12 rejected`` and the like."""
    ledger = ctx.ledger
    words = [f"{ledger.accepted} accepted"] if ledger.accepted else []
    if ledger.rejected:
        words.append(f"{sum(ledger.rejected.values())} rejected")
    if ledger.calls:
        words.append(f"{ledger.calls} calls" + (f" ({ledger.cached} from the journal)" if ledger.cached else ""))
    if ledger.generated:
        words.append(f"{ledger.generated} generated")
    return ", ".join(words) or "done"


@contextmanager
def locked(root: Path, name: str, busy: str, take: Callable[[Any, int], Any] = fcntl.flock) -> Iterator[None]:
    """Hold a lock file below the root, made where it is missing.

    Raises:
        SpeedlitError: another process holds it (``busy`` says so), or the folder cannot be made.
    """
    path = root / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise SpeedlitError(f"cannot use {root} as the root folder: {error.strerror}; choose another with --root, or --trainer.default_root_dir") from error
    with lock:
        try:
            take(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SpeedlitError(busy) from error
        yield


@contextmanager
def owned(root: Path, plain: dict[str, Any], shard: tuple[int, int] = (0, 1)) -> Iterator[None]:
    """Hold the root for this process, and refuse a root that another recipe has filled.

    Raises:
        UsageError: the root belongs to another config.
        SpeedlitError: another process is running in it, or the folder cannot be made.
    """
    name = ".lock" if shard == (0, 1) else f".lock-{shard[0]}-of-{shard[1]}"
    with locked(root, name, f"another speedlit process is running in {root}; wait for it or choose another --root"):
        mine = {key: plain[key] for key in IDENTITY}
        path = root / "run.json"
        if path.exists():
            theirs = read_object(path).get("identity", {})
            theirs = theirs if isinstance(theirs, dict) else {}
            differs = [f"{k}: {theirs.get(k)!r} there, {mine[k]!r} here" for k in IDENTITY if theirs.get(k) != mine[k]]
            if differs:
                raise UsageError(f"{root} belongs to another config ({'; '.join(differs)}); choose another --root, or remove that folder")
        elif any((root / "stages").glob("*")):
            raise UsageError(f"{root} holds stages but no run.json, so nobody can say which config made them; choose another --root")
        write_json(path, {"identity": mine, "config": plain})
        yield


def summarise(root: Path, every: dict[str, Stage], plain: dict[str, Any], write: bool = True) -> dict[str, Any]:
    """Per finished stage: seconds and ledger; what the data cost per accepted sample; all alarms; and the tables that the evaluation stage made."""
    finished: dict[str, Any] = {}
    for stage in every.values():
        manifest = stage.folder(root) / "manifest.json"
        if (stage.folder(root) / "_SUCCESS").exists() and manifest.exists():
            made = read_object(manifest, "seconds", "ledger")
            finished[stage.name] = {"seconds": made["seconds"], **made["ledger"]}
    levels = levels_of(plain.get("quality"))
    alarms = [{"stage": stage, "of": of, "measure": name, "value": found[name]} for stage, of, found in of_stages(finished) for name in found["alarms"]]
    summary = {"stages": finished, "costs": ledger(finished, plain, root), "alarms": alarms, "levels": levels}
    if "evaluation" in finished:
        summary.update(read_object(every["evaluation"].folder(root) / "tables.json"))
    if write:
        write_json(root / "summary.json", summary)
    return summary
