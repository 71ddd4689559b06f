"""The four training stages: rows become shards, a fit recipe becomes a finished model folder.

The junior is the base tuned on the teacher's seed records; the senior is the junior after preference optimisation, its
reference is the frozen junior itself; the revisor starts from the base again (paper 3.2.4, and the released adapter);
the embedder starts from the embedder base.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from speedlit.context import Context
from speedlit.errors import SpeedlitError
from speedlit.pipeline.launch import LAUNCH, launched
from speedlit.pipeline.parallel import in_processes
from speedlit.pipeline.yamlfiles import fit_recipe, merge
from speedlit.records import Preference, Record, Revision, read_rows
from speedlit.synthesis.stages.common import prompts_of


def junior(ctx: Context) -> None:
    """SFT of the base on the seed records."""
    from speedlit.synthesis.rows import sft_rows

    rows = sft_rows(prompts_of(ctx, "seed"), read_rows(ctx.inputs["seed"] / "records.jsonl", Record))
    data = shards(rows, ctx.out / "data", "sft")
    train(ctx, [job(ctx, "junior", data, [], ctx.out)])


def senior(ctx: Context) -> None:
    """DPO of the junior on the teacher's rankings; and, as a control, the same fit with the preference term switched off."""
    from speedlit.synthesis.rows import preference_rows

    records = read_rows(ctx.inputs["candidates"] / "records.jsonl", Record)
    preferences = read_rows(ctx.inputs["preferences"] / "preferences.jsonl", Preference)
    data = shards(preference_rows(prompts_of(ctx, "root"), records, preferences), ctx.out / "data", "preference")
    start = [ctx.inputs["junior"] / "model"]
    jobs = [job(ctx, "senior", data, start, ctx.out)]
    if ctx.config["control"]:
        control = {"model": {"init_args": {"beta": 0.0}}}
        jobs.append(job(ctx, "senior", data, start, ctx.out / "control", control))
    train(ctx, jobs)


def revisor(ctx: Context) -> None:
    """SFT of the base (not the junior) on the teacher's revisions."""
    from speedlit.synthesis.rows import revision_rows
    from speedlit.synthesis.templates import load_set

    revisions = read_rows(ctx.inputs["revisions"] / "revisions.jsonl", Revision)
    template = load_set(ctx.config["prompts"])
    data = shards(revision_rows(prompts_of(ctx, "root"), revisions, template, ctx.config["revision"]), ctx.out / "data", "sft")
    train(ctx, [job(ctx, "revisor", data, [], ctx.out)])


def embedder(ctx: Context) -> None:
    """Contrastive tuning on the refined triplets; one embedder per compared source and seed; and the base as it was."""
    from speedlit.models.folder import save_untrained

    comparison = ctx.config["comparison"]
    evaldata = evaluation_folder(ctx)
    jobs = [embedder_job(ctx, "refined", ctx.config["seed"], ctx.out, evaldata)]
    for source in comparison["sources"]:
        for seed in range(comparison["seeds"]):
            out = ctx.out / "compare" / f"{source}-{seed}"
            if (source, seed) != ("refined", ctx.config["seed"]):  # that one is the embedder itself
                jobs.append(embedder_job(ctx, source, seed, out, None))
    train(ctx, jobs, comparison["processes"])
    save_untrained(ctx.out / "model", ctx.out / "untrained")


def embedder_job(ctx: Context, source: str, seed: int, out: Path, evaldata: Path | None) -> dict[str, Any]:
    """One embedder fit; with ``evaldata`` the MTEB callback scores it while it trains."""
    over: dict[str, Any] = {"seed_everything": seed, "data": {"init_args": {"seed": seed}}, **own_negatives(ctx)}
    made = job(ctx, "embedder", ctx.inputs["dataset"] / "shards" / source, [], out, over)
    if evaldata is not None or ctx.config["evaluation"]["tasks"]:
        callback = {
            "class_path": "speedlit.callbacks.mteb.MTEB",
            "init_args": {"tasks": ctx.config["evaluation"]["tasks"] or None, "data": str(evaldata) if evaldata else None},
        }
        trainer = made["config"].setdefault("trainer", {})
        if not any(c.get("class_path", "").endswith("mteb.MTEB") for c in trainer.get("callbacks") or []):
            trainer["callbacks"] = [*(trainer.get("callbacks") or []), callback]
    return made


def own_negatives(ctx: Context) -> dict[str, Any]:
    """What tells our embedding module which task kinds see their own hard negatives alone: the recipe's, and those whose template says so."""
    from speedlit.synthesis.templates import load_set

    model = fit_recipe(ctx.config["embedder"]).get("model") or {}
    if str(model.get("class_path")).rpartition(".")[2] != "EmbeddingModule":
        return {}  # another module has arguments of its own
    templates = load_set(ctx.config["prompts"]).templates.values()
    kinds = {*((model.get("init_args") or {}).get("no_in_batch") or ()), *(t.kind for t in templates if not t.in_batch_negatives)}
    return {"model": {"init_args": {"no_in_batch": sorted(kinds)}}}


def evaluation_folder(ctx: Context) -> Path | None:
    """The folder of evaluation tasks: the config's own, else tasks rendered from the world's held-out cells."""
    if ctx.config["evaluation"]["data"]:
        return Path(ctx.config["evaluation"]["data"])
    rendered = ctx.inputs["dataset"] / "evaldata"
    return rendered if rendered.is_dir() else None


def shards(rows: Iterable[dict[str, Any]], out: Path, shape: str) -> Path:
    """Write training shards.

    Raises:
        SpeedlitError: there is nothing to train on.
    """
    from speedlit.data.shards import write_shards
    from speedlit.files import remove

    rows = list(rows)
    if not rows:
        raise SpeedlitError(f"nothing to train on for {out.parent.name}: every record of the stages before was rejected; their rejected.jsonl says why")
    remove(out)  # a half-written set of an interrupted run
    write_shards(rows, out, shape)
    return out


def job(ctx: Context, name: str, data: Path, adapters: list[Path], out: Path, over: dict[str, Any] | None = None) -> dict[str, Any]:
    """The arguments of one fit: the stage's recipe with base, data and seed filled in."""
    recipe = fit_recipe(ctx.config[name])
    base = (ctx.config["embedder_base"] or ctx.config["base"]) if name == "embedder" else ctx.config["base"]
    filled = {
        "seed_everything": ctx.config["seed"],
        "model": {"init_args": {"backbone": {"name": base, "adapters": [str(a) for a in adapters]}}},
        "data": {"init_args": {"shards": str(data), "seed": ctx.config["seed"]}},
    }
    return {"config": merge(merge(recipe, filled), over or {}), "out": str(out)}


def train(ctx: Context, jobs: list[dict[str, Any]], processes: int | None = None) -> None:
    """Run fits, several at a time where the config allows, or each over all ranks of a Slurm job; their figures go to the ledger."""
    if words := os.environ.get(LAUNCH):
        results = [launched(**job, words=words) for job in jobs]
    else:
        workers = min(processes or ctx.config["sampling"]["processes"], len(jobs))
        results = in_processes("speedlit.pipeline.fitting:fit", jobs, workers, ctx.name)
    ctx.ledger.notes["fits"] = [
        {"out": Path(j["out"]).relative_to(ctx.out).as_posix() or ".", **{k: r[k] for k in ("steps", "seconds", "final")}}
        for j, r in zip(jobs, results, strict=True)
    ]
    ctx.ledger.accepted = 0
