"""SFT of the same rows: our module against TRL's SFTTrainer (completion-only loss), samples per second of training."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

from scripts.bench.data import rows
from speedlit.data.shards import write_shards
from speedlit.models.backbone import resolve
from speedlit.pipeline.fitting import fit

STEPS, BATCH = 20, 16


def sft(folder: Path) -> tuple[str, str, Callable[[], float], Callable[[], float]]:
    """The row's unit, its peer, and one timed round of each side."""
    data = rows(STEPS * BATCH)
    write_shards(data, folder / "sft", "sft")
    number = itertools.count()

    def ours() -> float:
        recipe = {
            "model": {"class_path": "SFTModule", "init_args": {"backbone": {"name": "speedlit:base"}, "schedule": {"kind": "constant"}}},
            "optimizer": {"class_path": "AdamW", "init_args": {"lr": 1e-4}},
            "data": {"class_path": "SFTData", "init_args": {"shards": str(folder / "sft"), "batch_size": BATCH}},
            "trainer": {"max_steps": STEPS, "accelerator": "cpu"},
        }
        return STEPS * BATCH / float(fit(recipe, folder / f"ours-{next(number)}", progress=False)["seconds"])

    def theirs() -> float:
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl import SFTConfig, SFTTrainer

        base = resolve("speedlit:base")
        config = SFTConfig(
            output_dir=str(folder / f"theirs-{next(number)}"), per_device_train_batch_size=BATCH, max_steps=STEPS, learning_rate=1e-4, use_cpu=True,
            report_to="none", save_strategy="no", logging_strategy="no", completion_only_loss=True, bf16=False, gradient_checkpointing=False,
            disable_tqdm=True, dataloader_num_workers=0, lr_scheduler_type="constant",
        )  # fmt: skip
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(base), args=config, processing_class=AutoTokenizer.from_pretrained(base),
            train_dataset=Dataset.from_list([{"prompt": r["prompt"] + "\n", "completion": r["completion"]} for r in data]),
        )  # fmt: skip
        return STEPS * BATCH / float(trainer.train().metrics["train_runtime"])

    return "samples/s", "TRL SFTTrainer", ours, theirs
