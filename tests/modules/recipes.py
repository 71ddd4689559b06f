"""Small fits of the three modules, and a process of their own to run them in."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from pathlib import Path
from typing import Any

import peft.tuners.lora.model  # noqa: F401 - loaded once here, not in every child
import torch
import transformers.models.llama.modeling_llama  # noqa: F401

import speedlit.pipeline.recipe  # noqa: F401
from speedlit.data.shards import write_shards
from tests.helpers import contrastive_rows, preference_rows, sft_rows, tiny_llama

KINDS = ("sft", "preference", "contrastive")
CLASSES = {"sft": ("SFTModule", "SFTData"), "preference": ("DPOModule", "PreferenceData"), "contrastive": ("EmbeddingModule", "ContrastiveData")}


def prepare(root: Path) -> Path:
    """A base and one shard set per shape; returns ``root``."""
    tiny_llama(root / "base")
    for shape, rows in (("sft", sft_rows(30)), ("preference", preference_rows(30)), ("contrastive", contrastive_rows(40, ("retrieval", "sts"), 1))):
        write_shards(rows, root / shape, shape)
    return root


def recipe(root: Path, kind: str, lora: bool = True, **over: Any) -> dict[str, Any]:
    """A fit of 2 epochs with batches of 8 in micro-batches of 4, LoRA dropout, warm-up and cosine; ``over`` replaces whole blocks' keys."""
    module, data = CLASSES[kind]
    model: dict[str, Any] = {
        "backbone": {"name": str(root / "base"), "attention": "bidirectional" if kind == "contrastive" else "causal"},
        "schedule": {"kind": "cosine", "warmup_steps": 2}, **over.pop("model", {}),
    }  # fmt: skip
    if lora:
        model.setdefault("adapter", {"class_path": "LoRA", "init_args": {"r": 4, "dropout": 0.1}})
    if kind == "preference":
        model.setdefault("nll_weight", 0.5)
    return {
        "seed_everything": 3, "model": {"class_path": module, "init_args": model},
        "optimizer": over.pop("optimizer", {"class_path": "AdamW", "init_args": {"lr": 1e-2}}),
        "data": {"class_path": data, "init_args": {"shards": str(root / kind), "batch_size": 8, "micro_batch": 4, **over.pop("data", {})}},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", **over.pop("trainer", {})},
    }  # fmt: skip


def in_ranks(world: int, target: Any, *arguments: Any) -> list[int | None]:
    """Run in forked processes of one thread each, as torchrun would start them; returns their exit codes."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]

    def run(rank: int) -> None:
        torch.set_num_threads(1)
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), GROUP_RANK="0", NODE_RANK="0",
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test",
        )  # fmt: skip
        try:
            target(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(3)
        os._exit(0)

    ranks = [multiprocessing.get_context("fork").Process(target=run, args=(rank,)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(200)
    for process in ranks:
        if process.exitcode is None:
            process.kill()
    return [process.exitcode for process in ranks]


def in_child(target: Any, *arguments: Any, **keywords: Any) -> int:
    """Run in a forked process of one thread; returns its exit code, -9 if it was killed."""

    def run() -> None:
        torch.set_num_threads(1)
        try:
            target(*arguments, **keywords)
        except BaseException:
            traceback.print_exc()
            os._exit(3)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError("the child hangs")
    return process.exitcode
