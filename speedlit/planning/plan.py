"""What a run will take, stage by stage, before anything is spent: calls, tokens, USD, generator hours, training FLOPs, memory.

Nothing here asks a teacher or loads a model. Figures are upper bounds in one respect: no rejections are taken off before ``dataset``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from speedlit.files import read_json
from speedlit.pipeline.config import RunConfig
from speedlit.pipeline.costs import CAVEATS, E5, PAPER, e5_for
from speedlit.pipeline.yamlfiles import fit_recipe
from speedlit.planning import scaling
from speedlit.planning.footprint import Fit, Shape, flops, known_shape, memory, per_token, shape_of
from speedlit.planning.measured import Measured, token_seconds, words
from speedlit.planning.prompts import EDITS, REASON, Lengths, answer_tokens, brainstorm_length, lengths, mix, task_kinds
from speedlit.planning.reach import prompts_per_task, shortfalls, topics_needed
from speedlit.planning.tokens import Meter, local_file, meter
from speedlit.planning.topics import topics_of
from speedlit.synthesis.templates import PromptSet, load_set

CAUTIOUS = 0.4  # of the peak: what a plan of measured shares is set beside
QUERY = 15  # tokens of the instruction that an embedder reads before a query


@dataclass
class Need:
    """What one stage takes; None is unknown, a missing figure is none.

    Attributes:
        calls: questions to the teacher; ``generated``: answers of local models.
        usd: for the teacher.
        hours: with all devices at work; ``device_hours`` and ``device_usd`` of them together.
        memory: bytes on one device, by part.
        note: the formula, and what was assumed.
    """

    stage: str
    calls: int | None = 0
    generated: int = 0
    tokens_in: float | None = 0
    tokens_out: float | None = 0
    usd: float | None = 0.0
    flops: float = 0.0
    hours: float = 0.0
    device_hours: float = 0.0
    device_usd: float | None = 0.0
    memory: dict[str, float] = field(default_factory=dict)
    note: str = ""


def plan(config: RunConfig, gpus: Sequence[int] = (), measured: Measured | None = None) -> dict[str, Any]:
    """The plan of a run.

    Args:
        config: of the run.
        gpus: numbers of devices to say the training stages' speed for.
        measured: what training's speed rests on; None: ``plan.utilisation``, or what is shipped.

    Returns:
        ``stages`` (one dict of figures each), ``total``, ``paper`` and ``e5`` beside it, ``assumed``, ``warnings``, ``caveats``;
        with ``gpus`` also ``scaling`` (rows of ``speedlit.planning.scaling.table``) and ``whole`` (hours and USD of the recipe).
    """
    planner = Planner(config, measured)
    found = planner.plan()
    return {**found, **planner.scaling(found["stages"], gpus)} if gpus else found


class Planner:
    """The plan of one config; see ``plan``."""

    def __init__(self, config: RunConfig, measured: Measured | None = None) -> None:
        self.config, self.counts, self.measured = config, config.counts, measured
        self.templates: PromptSet = load_set(config.prompts)
        self.topics = topics_of(config)
        another = config.teacher.backend or config.teacher.base_url or os.environ.get("OPENAI_BASE_URL")
        self.embedded = config.teacher.embedded is not None and not another
        self.teacher, self.writer = meter(config.teacher.model), meter(config.base)
        self.price = config.prices.get(config.teacher.model)
        self.unknown: list[str] = []
        self.fits: dict[str, tuple[Shape, Fit, float, float]] = {}  # stage -> shape, recipe, tokens of a sample, tokens of all its fits
        self.paid = self._lengths(self.teacher)
        self.local = self.paid if self.writer.source == self.teacher.source else self._lengths(self.writer)
        self.shapes = {name: self._shape(name) for name in dict.fromkeys((config.base, config.embedder_base or config.base))}

    def _lengths(self, how: Meter) -> Lengths:
        by_kind = lengths(self.config, self.templates, self.topics.paths, how)
        return mix(by_kind, self.templates.shares(1_000_000))

    def _shape(self, name: str) -> Shape | None:
        file = local_file(name, "config.json")
        shape = shape_of(read_json(file)) if file else known_shape(name)
        if file is None and shape is not None:
            self.unknown.append(f"{name} is not on this machine: its public shape is assumed ({shape.parameters / 1e9:.2f} billion parameters)")
        if shape is None:
            self.unknown.append(f"{name} is not on this machine and its shape is not known here: FLOPs and memory are left out")
        return shape

    # ---- stages -----------------------------------------------------------------------------------------------------------------

    def plan(self) -> dict[str, Any]:
        """Put everything together."""
        needs = self.needs()
        total = totals(needs)
        samples = self.samples()
        return {
            "name": self.config.name,
            "stages": [asdict(need) for need in needs],
            "total": total,
            "accepted": samples,
            "paper": PAPER,
            "e5": {**E5, "for_as_many": e5_for(samples, self.price, total)},
            "assumed": self.assumed(),
            "warnings": self.warnings(needs),
            "caveats": CAVEATS,
        }

    def samples(self) -> int:
        """Triplets that are expected to pass the filters."""
        kept = int(self.counts.synthesis * self.config.plan.kept)
        return min(kept, self.counts.embedder or kept)

    def needs(self) -> list[Need]:
        """All stages that take something, in their order."""
        c, paid = self.counts, self.paid
        revised = EDITS if self.config.revision == "edits" else paid.record
        held = c.test + c.validation
        senior = c.synthesis + held * c.test_samples
        repeats = {"senior": senior, "junior": held * max(c.test_samples, c.candidates), "control": held * c.test_samples if self.config.control else 0}
        repeats["junior"] += c.synthesis if "junior" in self.config.comparison.sources else 0
        asked = 2 if self.config.judge_swap else 1
        rankings, records = min(c.preferences, c.root), min(c.revisions, c.root * c.candidates)
        answer = EDITS if self.config.revision == "edits" else self.local.record
        return [
            self.brainstorm(),
            self.asked("seed", c.seed, paid.prompt, paid.record, self.batched()),
            self.fit("junior", c.seed, self.local.prompt + self.local.record),
            self.generated("candidates", c.root * c.candidates, self.local.prompt, self.local.record),
            self.asked("preferences", asked * rankings, paid.judge, REASON + 4 * c.candidates, self.batched()),
            self.fit("senior", rankings, 2 * (self.local.prompt + self.local.record), fits=2 if self.config.control else 1),
            self.asked("revisions", records, paid.critique, REASON + revised, self.batched()),
            self.fit("revisor", records, self.local.revise + answer),
            self.generated("synthesis", sum(repeats.values()), self.local.prompt, self.local.record),
            self.generated("refinement", senior, self.local.revise, answer),
            *self.inspection(),
            self.embedder(),
        ]

    def inspection(self) -> list[Need]:
        """The judge's look at some triplets: each beside itself with positive and negative exchanged."""
        shown = self.paid.judge - (self.counts.candidates - 2) * self.paid.record
        return [self.asked("dataset", self.counts.inspected, shown, REASON + 8)] if self.counts.inspected else []

    def batched(self) -> float:
        """What the Batch API charges of the price, where it is used."""
        return self.price.batch if self.price and self.config.teacher.mode == "batch" else 1.0

    def brainstorm(self) -> Need:
        """Task brainstorming, which the paper leaves out of its accounting."""
        size = brainstorm_length(self.config, self.templates, self.topics.paths, self.teacher)
        kinds, answer = len(task_kinds(self.templates)), answer_tokens(self.config, "brainstorm")
        if self.topics.count is None and kinds:
            note = f"unknown without topics: {kinds} calls of about {size + answer:.0f} tokens per topic"
            return Need("tasks", None, 0, None, None, None, note=note)
        need = self.asked("tasks", kinds * (self.topics.count or 0), size, answer)
        need.note = f"{self.topics.count:,} topics x {kinds} kinds; left out of the paper's accounting"
        return need

    def asked(self, stage: str, calls: int, size: float, answer: float, share: float = 1.0) -> Need:
        """Questions to the teacher."""
        answer = min(answer, self.config.teacher.max_tokens)
        tokens_in, tokens_out = calls * size, calls * answer
        usd: float | None = 0.0
        if self.price or not self.embedded:  # the embedded teacher costs nothing unless `prices` says so, as in the ledger and the budget
            usd = share * (tokens_in * self.price.input + tokens_out * self.price.output) / 1e6 if self.price else None
        note = f"{size:,.0f} + {answer:,.0f} tokens a call" + ("" if share == 1 else f", {share:.0%} of the price in batches")
        return Need(stage, calls, 0, tokens_in, tokens_out, usd, note=note)

    def generated(self, stage: str, answers: int, size: float, answer: float) -> Need:
        """Answers of a trained generator."""
        assumed, shape = self.config.plan, self.shapes[self.config.base]
        answer = min(answer, self.config.sampling.max_tokens)
        tokens_in, tokens_out = answers * size, answers * answer
        hours = tokens_out / (assumed.tokens_per_second * assumed.devices) / 3600
        work = 2 * shape.parameters * (tokens_in + tokens_out) if shape else 0.0
        return Need(stage, 0, answers, tokens_in, tokens_out, 0.0, work, *self.rent(hours), note=f"{size:,.0f} + {answer:,.0f} tokens an answer; 2NT")

    def fit(self, stage: str, samples: int, tokens: float, fits: int = 1, base: str | None = None, spread: int = 0) -> Need:
        """``fits`` trainings of one recipe over samples of ``tokens`` tokens each."""
        found, shape = read_fit(fit_recipe(asdict(getattr(self.config, stage))), spread), self.shapes[base or self.config.base]
        steps = found.steps_for(samples)
        seen = min(steps * found.batch, samples * found.epochs)
        work = fits * flops(shape, found, seen * tokens, min(seen, samples) * tokens) if shape else 0.0
        if fits == 2 and found.reference and shape:  # the control has no preference term, so it reads no reference
            work -= flops(shape, found, seen * tokens, min(seen, samples) * tokens) - flops(shape, without_reference(found), seen * tokens, 0)
        if shape and seen:
            self.fits[stage] = shape, found, tokens, fits * seen * tokens
        seconds = token_seconds(shape, found, tokens, self.config.plan, self.measured, stage) / per_token(shape, found) if shape and tokens else 0.0
        hours = work * seconds / self.config.plan.devices / 3600
        many = f"{fits} fits of " if fits > 1 else ""
        note = f"{many}{steps:,} steps, {tokens:,.0f} tokens a sample; {found.formula}"
        return Need(stage, 0, 0, 0, 0, 0.0, work, *self.rent(hours), memory(shape, found) if shape else {}, note)

    def embedder(self) -> Need:
        """The embedder, and those of the comparison of sources."""
        negatives = sum(self.templates[kind].key_of("negative") is not None for kind in self.templates) / len(list(self.templates))
        tokens = self.local.record + QUERY  # query, positive and negative together are the record
        extra = len(self.config.comparison.sources) * self.config.comparison.seeds
        fits = 1 + extra - (1 if "refined" in self.config.comparison.sources and extra else 0)
        return self.fit("embedder", self.samples(), tokens, fits, self.config.embedder_base, spread=2 + round(negatives))

    def rent(self, hours: float) -> tuple[float, float, float | None]:
        """Hours, hours of all devices together, and their rent in USD."""
        rate, together = self.config.plan.usd_per_hour, hours * self.config.plan.devices
        return hours, together, None if rate is None else together * rate

    def scaling(self, stages: list[dict[str, Any]], gpus: Sequence[int]) -> dict[str, Any]:
        """The training stages on so many devices; and the whole recipe: each server of a generator works for itself."""
        rows = scaling.table(self.fits, gpus, self.config.plan, self.measured)
        cautious = scaling.table(self.fits, gpus, replace(self.config.plan, utilisation=CAUTIOUS))
        answers, rate = sum(s["device_hours"] for s in stages if s["generated"]), self.config.plan.usd_per_hour
        whole = []
        for count in gpus:
            hours, slow = (answers / count + sum(row["hours"] for row in side if row["gpus"] == count) for side in (rows, cautious))
            usd = None if rate is None else hours * count * rate
            whole.append({"gpus": count, "hours": hours, "device_hours": hours * count, "device_usd": usd, "cautious_hours": slow})
        return {"scaling": rows, "whole": whole}

    # ---- words ------------------------------------------------------------------------------------------------------------------

    def assumed(self) -> list[str]:
        """What the figures rest on."""
        p = self.config.plan
        table = ", ".join(f"{kind} {answer_tokens(self.config, kind)}" for kind in [*self.templates, "brainstorm"])
        money = f" at {p.usd_per_hour:g} USD an hour" if p.usd_per_hour is not None else ""
        return [
            f"tokens of the teacher's prompts: {self.teacher.source}; of the generators' prompts: {self.writer.source}",
            f"mean tokens of an answer (plan.answer_tokens): {table}",
            f"{p.kept:.0%} of the synthetic records pass the filters (plan.kept; the paper's MinHash kept 80 %)",
            f"{p.devices} x {p.device}{money}: {p.tflops:g} TFLOP/s, {p.tokens_per_second:,.0f} tokens/s in generation, {p.memory_gb:g} GB "
            "(plan.*; not measured)",
            words(p, self.measured),
            *self.unknown,
        ]

    def warnings(self, needs: list[Need]) -> list[str]:
        """What stands in the way."""
        out = []
        if self.topics.count is None:
            least = topics_needed(self.config, self.templates)
            out.append(f"topics.file is not set: example topics stood in; for at most one synthetic prompt per task this run needs about {least:,} topics")
        else:
            out += shortfalls(self.config, self.templates, self.topics.count)
            often = max(prompts_per_task(self.config, self.templates, self.topics.count).items(), key=lambda pair: pair[1])
            if often[1] > 20 and not self.embedded:
                out.append(f"each {often[0]} task gets about {often[1]:,.0f} synthetic prompts (the paper: about 1): give more topics for more variety")
        if self.price is None and not self.embedded:
            name = self.config.teacher.model
            out.append(f"prices has no {name!r}, so USD are unknown: add `{name}: {{input: USD, output: USD}}` (per million tokens)")
        most = self.config.plan.memory_gb * 1e9
        for need in needs:
            if need.memory and need.memory["total"] > most:
                size = f"{need.memory['total'] / 1e9:,.0f} GB on one device, more than plan.memory_gb ({self.config.plan.memory_gb:g})"
                out.append(f"{need.stage} needs about {size}: lower data.micro_batch, take LoRA or QLoRA, or shard it (trainer/fsdp.yaml)")
        return out + over_budget(needs, asdict(self.config.budget))


def over_budget(needs: list[Need], caps: Mapping[str, float | None]) -> list[str]:
    """One line per cap that the plan passes, with the stage in which it does."""
    out = []
    for name, cap in caps.items():
        spent = 0.0
        for need in needs:
            if cap is None:
                break
            values = {"usd": need.usd, "calls": need.calls, "tokens": (need.tokens_in or 0) + (need.tokens_out or 0) if need.calls else 0}
            spent += values[name] or 0
            if spent > cap:
                out.append(f"budget.{name} is {cap:g}: the run will stop in the stage {need.stage}; all its stages need about {needed(needs, name):,.2f}")
                break
    return out


def needed(needs: list[Need], name: str) -> float:
    """The whole run's need of what a cap counts."""
    total = totals(needs)
    return float(total["tokens_in"] + total["tokens_out"] if name == "tokens" else total[name])


def totals(needs: list[Need]) -> dict[str, Any]:
    """Sums of what is known; the teacher's tokens only, and beside them the sums without brainstorming, as the paper counts."""
    paid = [need for need in needs if need.calls]
    counted = [need for need in paid if need.stage != "tasks"]
    total: dict[str, Any] = {name: sum(getattr(n, name) or 0 for n in paid) for name in ("calls", "tokens_in", "tokens_out", "usd")}
    total |= {name: sum(getattr(n, name) or 0 for n in needs) for name in ("generated", "flops", "hours", "device_hours", "device_usd")}
    total["device_usd"] = None if any(n.device_usd is None for n in needs) else total["device_usd"]
    total["usd"] = None if any(n.usd is None for n in counted) else total["usd"]
    total["without_brainstorming"] = {"calls": sum(n.calls or 0 for n in counted), "tokens": sum((n.tokens_in or 0) + (n.tokens_out or 0) for n in counted)}
    return total


def read_fit(recipe: Mapping[str, Any], spread: int = 0) -> Fit:
    """The cost-bearing keys of a fit recipe; ``spread``: texts per sample of a contrastive one."""
    model, data, trainer = recipe.get("model") or {}, (recipe.get("data") or {}).get("init_args") or {}, recipe.get("trainer") or {}
    args = model.get("init_args") or {}
    backbone, adapter = args.get("backbone") or {}, args.get("adapter")
    lora = (adapter.get("init_args", adapter) or {}) if adapter else {}
    kind, optimizer = str(model.get("class_path", "")), recipe.get("optimizer") or args.get("optimizer") or {}
    pairs = kind.endswith("DPOModule")
    steps, batch = trainer.get("max_steps"), int(data.get("batch_size") or 16)
    reference = args.get("reference") or ("adapter_off" if adapter else "copy")
    beta = float(args.get("beta", 0.1))
    return Fit(
        rank=int(lora.get("r", 16)) if adapter else None,
        targets=lora.get("targets", "all-linear"),
        quantized=bool(adapter) and str((adapter or {}).get("class_path", "")).endswith("QLoRA"),
        dtype=str(backbone.get("dtype", "float32")),
        recompute=bool(backbone.get("gradient_checkpointing")),
        cached=bool(args.get("recompute")),
        batch=batch,
        micro=int(data.get("micro_batch") or batch),
        length=int((args.get("tokens") or {}).get("max_length", 512)),
        epochs=float(trainer.get("max_epochs") or (1 if steps in (None, -1) else 1e9)),
        steps=None if steps in (None, -1) else int(steps),
        sequences=2 if pairs else spread or 1,
        reference="" if not pairs or not beta else "once" if reference == "precomputed" else "each",
        copy=pairs and bool(beta) and (reference == "copy" or (reference == "precomputed" and not adapter)),
        optimizer=str(optimizer.get("class_path", "AdamW")),
        contrastive=bool(spread),
    )


def without_reference(fit: Fit) -> Fit:
    """The same fit with the preference term off."""
    return replace(fit, reference="", copy=False)
