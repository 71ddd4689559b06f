"""The ``evaluation`` stage: how good the records of each generator are, and what an embedder makes of them.

Records are checked by the embedded teacher's exact checker, on held-out cells only. Where the teacher is another one, the
table of record quality is left out and says so. All intervals are 95 %; differences are paired by prompt, and bootstraps
draw whole cells, since prompts of one cell resemble each other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speedlit.context import Context
from speedlit.evaluation.bootstrap import cluster_bootstrap, paired_bootstrap, t_interval
from speedlit.files import read_json, write_json
from speedlit.pipeline.parallel import in_processes
from speedlit.pipeline.training import evaluation_folder
from speedlit.records import Generation, Prompt, Record, Revision, read_rows
from speedlit.synthesis.stages.common import prompts_of

PAIRS = (("senior", "junior"), ("control", "junior"), ("senior", "control"), ("refined", "senior"), ("refined", "junior"))
Checks = list[dict[str, float]]


def run(ctx: Context) -> None:
    """Write ``tables.json`` with the keys ``quality`` and ``embedders``."""
    tables = {"quality": quality(ctx), "embedders": embedders(ctx)}
    write_json(ctx.out / "tables.json", tables)
    ctx.ledger.notes["tables"] = [name for name, table in tables.items() if table]


def quality(ctx: Context) -> dict[str, Any] | None:
    """Every check of every generator on the held-out prompts, with differences, upper bound, and fix and break rate."""
    if ctx.checker is None:
        return None
    prompts = list(prompts_of(ctx, "test"))
    if not prompts:
        return None
    answers = {
        s: texts(ctx.inputs["synthesis"] / f"generations-{s}.jsonl", prompts)
        for s in ("junior", "control", "senior")
        if (ctx.inputs["synthesis"] / f"generations-{s}.jsonl").exists()
    }
    answers["refined"] = refined_texts(ctx.inputs["refinement"], answers["senior"], ctx.inputs["synthesis"], {p.id for p in prompts})
    samples = ctx.config["counts"]["test_samples"]
    checked = {s: check(ctx, prompts, rows) for s, rows in answers.items()}
    best = [max(rows, key=lambda c: (c["good"], c["score"])) for rows in checked["junior"]]
    groups = [p.group for p in prompts]
    names = list(checked["junior"][0][0])
    means = {s: {n: [float(np.mean([c[n] for c in rows[:samples]])) for rows in per] for n in names} for s, per in checked.items()}
    means["best of " + str(len(checked["junior"][0])) + " junior"] = {n: [c[n] for c in best] for n in names}
    return {
        "prompts": len(prompts),
        "distinct": len({p.text for p in prompts}),
        "cells": len(set(groups)),
        "samples": samples,
        "sources": {s: {n: cluster_bootstrap(v, groups).to_json() for n, v in per.items()} for s, per in means.items()},
        "differences": [
            {"of": a, "over": b, **{n: difference(means[a][n], means[b][n], groups) for n in names}} for a, b in PAIRS if a in means and b in means
        ],
        "revisor": fix_and_break(checked["senior"], checked["refined"], samples),
    }


def difference(after: Sequence[float], before: Sequence[float], groups: Sequence[str]) -> dict[str, Any]:
    """A paired difference with its verdict."""
    interval = paired_bootstrap(after, before, groups)
    return {**interval.to_json(), "verdict": interval.verdict}


def texts(path: Path, prompts: Sequence[Prompt]) -> list[list[tuple[str, str]]]:
    """Per prompt the (generation id, raw text) of its samples, in the order of their index."""
    found: dict[str, list[Generation]] = {prompt.id: [] for prompt in prompts}
    for row in read_rows(path, Generation):
        if row.prompt_id in found:  # nearly all of them are data
            found[row.prompt_id].append(row)
    return [[(g.id, g.text) for g in sorted(found[p.id], key=lambda g: g.index)] for p in prompts]


def refined_texts(refinement: Path, senior: list[list[tuple[str, str]]], synthesis: Path, prompts: set[str]) -> list[list[tuple[str, str]]]:
    """The senior's answers after revision. An answer that was no record, or that the revisor left alone, stays as it was."""
    generation_of = {r.id: r.generation_id for r in read_rows(synthesis / "records-senior.jsonl", Record) if r.prompt_id in prompts}
    rows_of = read_rows(refinement / "revisions.jsonl", Revision)
    revised = {generation_of[r.record_id]: json.dumps(r.after, ensure_ascii=False) for r in rows_of if r.status == "revised" and r.prompt_id in prompts}
    return [[(g, revised.get(g, text)) for g, text in rows] for rows in senior]


def check(ctx: Context, prompts: Sequence[Prompt], answers: list[list[tuple[str, str]]]) -> list[Checks]:
    """The exact checker's verdicts, grouped as the answers are."""
    assert ctx.checker is not None
    items = [{"prompt": p.text, "text": text} for p, rows in zip(prompts, answers, strict=True) for _, text in rows]
    verdicts: Checks = []
    for start in range(0, len(items), 500):
        verdicts += ctx.checker("check", {"items": items[start : start + 500]})["checks"]
    flat = iter(verdicts)
    return [[next(flat) for _ in rows] for rows in answers]


def fix_and_break(before: list[Checks], after: list[Checks], samples: int) -> dict[str, Any]:
    """Share of bad records that revision made good, and of good ones that it made bad."""
    pairs = [(b["good"], a["good"]) for rows_b, rows_a in zip(before, after, strict=True) for b, a in zip(rows_b[:samples], rows_a[:samples], strict=True)]
    bad, good = [a for b, a in pairs if not b], [a for b, a in pairs if b]
    return {
        "bad": len(bad),
        "good": len(good),
        "fix_rate": float(np.mean(bad)) if bad else None,
        "break_rate": 1 - float(np.mean(good)) if good else None,
    }


def embedders(ctx: Context) -> dict[str, Any] | None:
    """mteb scores of the untrained base, of the embedder, and of one embedder per compared source and seed."""
    data = evaluation_folder(ctx)
    tasks = ctx.config["evaluation"]["tasks"]
    if data is None and not tasks:
        return None
    folder, comparison = ctx.inputs["embedder"], ctx.config["comparison"]
    models = {"embedder": folder / "model", "untrained": folder / "untrained"}
    for source in comparison["sources"]:
        for seed in range(comparison["seeds"]):
            own = (source, seed) == ("refined", ctx.config["seed"])
            models[f"{source}-{seed}"] = folder / "model" if own else folder / "compare" / f"{source}-{seed}" / "model"
    distinct = sorted(set(models.values()))
    jobs = [
        {
            "model": str(m),
            "tasks": tasks,
            "data": str(data) if data else None,
            "output": str(ctx.out / "results" / m.relative_to(folder).as_posix().replace("/", "-")),
        }
        for m in distinct
    ]
    workers = min(comparison["processes"], len(jobs))
    scores = dict(zip(distinct, in_processes("speedlit.evaluation.run:evaluate_folder", jobs, workers, "evaluation", "models"), strict=True))
    rows = {name: scores[path] for name, path in models.items()}
    return {"models": rows, "sources": by_source(rows, comparison), "tasks": list(rows["embedder"]), "count": counts(ctx)}


def by_source(rows: dict[str, dict[str, float]], comparison: dict[str, Any]) -> dict[str, Any]:
    """Mean and Student interval over seeds, and each source's difference to the untrained base and to the junior's data."""
    out: dict[str, Any] = {}
    for source in comparison["sources"]:
        seeds = [rows[f"{source}-{seed}"] for seed in range(comparison["seeds"])]
        if not seeds:
            continue
        out[source] = {task: t_interval([s[task] for s in seeds]).to_json() for task in seeds[0]}
        for other in ("untrained", "junior"):
            if other in out or other == "untrained":
                base = [rows["untrained"]] * len(seeds) if other == "untrained" else [rows[f"junior-{s}"] for s in range(len(seeds))]
                if source != other:
                    out[source][f"over {other}"] = {t: seed_difference(seeds, base, t) for t in seeds[0]}
    return out


def seed_difference(after: Sequence[dict[str, float]], before: Sequence[dict[str, float]], task: str) -> dict[str, Any]:
    """Paired by seed, Student interval."""
    interval = t_interval([a[task] - b[task] for a, b in zip(after, before, strict=True)])
    return {**interval.to_json(), "verdict": interval.verdict}


def counts(ctx: Context) -> dict[str, int]:
    """Triplets per source, as the dataset stage wrote them."""
    path = ctx.inputs["dataset"] / "counts.json"
    return dict(read_json(path)) if path.exists() else {}
