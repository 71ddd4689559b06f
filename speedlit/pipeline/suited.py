"""What of a config won't work on this machine, and the remedy: the mistakes that a run or a fit would tell, and what the machine lacks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from speedlit.errors import UsageError
from speedlit.pipeline.configure import configure
from speedlit.pipeline.machine import BAD, MEAGRE, OK, Finding, bitsandbytes_trouble, disk, fast_bfloat16, reach, size
from speedlit.pipeline.preflight import TRAINED, ahead, check_base, check_topics, preflight, said
from speedlit.pipeline.yamlfiles import find_recipe, fit_recipe, merge, read_recipe, read_yaml
from speedlit.workers import cores


def suited(names: Sequence[str], words: Sequence[str]) -> list[Finding]:
    """Findings about a run's config or a fit's recipe; the file says by its keys which of the two it is.

    Args:
        names: after ``--config``; a fit may have several.
        words: ``--key value`` words laid over it.
    """
    if "model" in read_yaml(find_recipe(names[0])):
        return fit_suited(names, words)
    if len(names) > 1:
        raise UsageError(f"--config {names[1]}: a run has one config; only fit recipes are laid over one another")
    return run_suited(names[0], list(words))


def wrong(name: str, lines: Sequence[str]) -> list[Finding]:
    """Mistakes as findings; what went before the semicolon is the text, what comes after is the remedy."""
    return [Finding(BAD, name, *line.split("; ", 1)) for line in lines]


def run_suited(name: str, words: list[str]) -> list[Finding]:
    """A run: its config, topics, teacher, training stages that are still to come, memory, disk."""
    made: list[Any] = []
    if mistakes := said(lambda: made.append(configure(name, words)), ""):
        return wrong("config", mistakes)
    from speedlit.pipeline.loop import stages

    config, every = made[0], stages()
    plain, root = config.plain(), Path(config.root)
    stages_ahead = ahead(every.values(), plain, root, None, None)
    out = wrong("topics", said(lambda: check_topics(every["topics"], plain, root), ""))
    out += wrong("training", said(lambda: preflight(stages_ahead, plain), ""))
    if out == []:
        out += [Finding(OK, "config", f"right; stages to train: {' '.join(stages_ahead) or 'none'}"), *room(config)]
    out += teacher(config)
    recipes: dict[str, dict[str, Any]] = {}

    def read(stage: str) -> None:
        recipes[stage] = fit_recipe(plain[stage])

    for stage in (stage for stage in TRAINED if stage in stages_ahead):
        if not said(partial(read, stage), ""):
            out += wants(recipes[stage], f"{stage}: ", f"{stage}.set.trainer")
    out += asked_of_processor("sampling", config.sampling.processes, config.sampling.dtype)
    return [*out, disk(root)]


def fit_suited(names: Sequence[str], words: Sequence[str]) -> list[Finding]:
    """A fit: its recipe, base model, shards, and what its trainer wants."""
    from speedlit.data.shards import ShardSet
    from speedlit.pipeline.recipe import Checker, make, override

    config: dict[str, Any] = {}
    for name in names:
        config = merge(config, read_recipe(name))
    config = override(config, words)
    out = wrong("recipe", said(lambda: make(config, Checker), ""))
    arguments = (config.get("model") or {}).get("init_args") or {}
    base = (arguments.get("backbone") or {}).get("name")
    if base:
        out += wrong("base", said(lambda: check_base(base), ""))
    shards = ((config.get("data") or {}).get("init_args") or {}).get("shards", [])
    for place in shards if isinstance(shards, list) else [shards]:
        path = place.get("path", "") if isinstance(place, dict) else place
        out += wrong("shards", said(partial(ShardSet, path), ""))
    out = out or [Finding(OK, "recipe", f"right; base {base or 'of its own'} and shards are there")]
    root = (config.get("trainer") or {}).get("default_root_dir") or "runs/fit"
    return [*out, *wants(config, "", "trainer"), disk(Path(root))]


def teacher(config: Any) -> list[Finding]:
    """The servers that a run asks."""
    out = []
    named = config.teacher.base_url or os.environ.get("OPENAI_BASE_URL")
    if config.teacher.backend:
        out.append(Finding(OK, "teacher", f"the class {config.teacher.backend}, which can be imported here"))
    elif named or config.teacher.embedded is None:
        out.append(reach("teacher", config.teacher.base_url))
    else:
        out.append(Finding(OK, "teacher", "the embedded one, started by the run"))
    if config.sampling.base_url:
        out.append(reach("generators", config.sampling.base_url))
    return out


def room(config: Any) -> list[Finding]:
    """Training stages that take more memory than a device has, by the estimate of ``speedlit plan``."""
    import torch

    from speedlit.models.memory import free_bytes
    from speedlit.planning.plan import plan

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = torch.cuda.get_device_properties(0).total_memory if device.type == "cuda" else free_bytes(device)
    out = []
    for need in plan(config)["stages"]:
        total = need["memory"].get("total", 0.0)
        if total > there:
            fits = need["memory"]["weights"] < there
            text = f"{need['stage']} takes about {size(total)}, of which its weights are {size(need['memory']['weights'])}; {size(there)} are there"
            hint = "a smaller micro_batch, gradient_checkpointing, QLoRA, or fsdp over several devices; `speedlit plan` shows the parts"
            out.append(Finding(MEAGRE if fits else BAD, "memory", text, hint))
    return out


def wants(recipe: dict[str, Any], prefix: str, key: str) -> list[Finding]:
    """What a recipe's trainer, adapter and optimizer want of the machine and don't get."""
    trainer = recipe.get("trainer") or {}
    arguments = (recipe.get("model") or {}).get("init_args") or {}
    out = wanted_devices(trainer, prefix, key)
    packed = [str((part or {}).get("class_path")) for part in (arguments.get("adapter"), arguments.get("optimizer"), recipe.get("optimizer"))]
    packed = [name.rpartition(".")[2] for name in packed if name.endswith(("QLoRA", "8bit", "4bit"))]
    if packed and (trouble := bitsandbytes_trouble()):
        out.append(Finding(BAD, f"{prefix}{packed[0]}", f"bitsandbytes doesn't work here: {trouble}", "use LoRA and AdamW"))
    dtype = (arguments.get("backbone") or {}).get("dtype", "float32")
    halves = dtype if dtype != "float32" else str(trainer.get("precision", ""))
    if "bf" in halves:
        out += asked_of_processor(f"{prefix}precision", 1, "bfloat16")
    return out


def wanted_devices(trainer: dict[str, Any], prefix: str, key: str) -> list[Finding]:
    """Devices that a trainer asks for and this machine doesn't have."""
    import torch

    have = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices, kind = trainer.get("devices", 1), trainer.get("accelerator", "auto")
    out = []
    if kind in ("gpu", "cuda") and not have:
        hint = f"--{key}.accelerator cpu" if prefix else "--trainer trainer/cpu.yaml in place of it"
        out.append(Finding(BAD, f"{prefix}devices", f"{key}.accelerator is {kind} and there is no GPU", f"{hint}, or start it where GPUs are"))
    elif have and isinstance(devices, int) and devices > have and kind != "cpu":
        out.append(Finding(BAD, f"{prefix}devices", f"{key}.devices is {devices} and there are {have} GPUs", f"--{key}.devices {have}"))
    nodes = trainer.get("num_nodes")
    if isinstance(nodes, int) and nodes > 1 and "SLURM_JOB_ID" not in os.environ:
        out.append(Finding(MEAGRE, f"{prefix}nodes", f"{key}.num_nodes is {nodes} outside of a Slurm job", "start it with srun: docs/clusters.md"))
    return out


def asked_of_processor(name: str, processes: int, dtype: str) -> list[Finding]:
    """Processes without a core, and bfloat16 on a CPU that is slow at it."""
    import torch

    out = []
    if processes > cores():
        out.append(Finding(MEAGRE, name, f"{name}.processes is {processes} on {cores()} cores", f"--{name}.processes {cores()}"))
    if dtype == "bfloat16" and not torch.cuda.is_available() and not fast_bfloat16():
        out.append(Finding(MEAGRE, name, "bfloat16 is slow on this CPU (no AMX, no AVX512-BF16)", "float32 is faster here"))
    return out
