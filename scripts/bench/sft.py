"""SFT with LoRA: our module against TRL's SFTTrainer (completion-only loss), completion tokens per second of training."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from scripts.bench.data import VOCABULARY, build_model, needed, sft_rows, words
from scripts.bench.row import FITS, Row, fit_seconds, peer_seconds
from speedlit.data.shards import write_shards

STEPS, BATCH = 2, 16
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
# all with bf16 and without logging; gradient checkpointing, TRL's default, is switched off except where named
CANDIDATES: dict[str, dict[str, Any]] = {
    "default": {"gradient_checkpointing": True},
    "no checkpointing": {},
    "group by length": {"train_sampling_strategy": "group_by_length"},
    "group by length, batches of 4": {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    "batches of 2": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8},
    "packing": {"packing": True, "per_device_train_batch_size": 7},
    "padding-free": {"padding_free": True, "max_length": None, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
}


def ours(folder: Path, model: Path, data: list[dict[str, str]]) -> float:
    """Seconds of our steps over the data."""
    if not (folder / "sft").is_dir():
        write_shards(data, folder / "sft", "sft")
    recipe = {
        "model": {"class_path": "SFTModule", "init_args": {
            "backbone": {"name": str(model)}, "adapter": {"class_path": "LoRA", "init_args": {"r": 16, "alpha": 32}},
            "tokens": {"max_length": 1024}, "schedule": {"kind": "constant"},
        }},
        "data": {"class_path": "SFTData", "init_args": {"shards": str(folder / "sft"), "batch_size": BATCH}},
        "trainer": {"max_epochs": 1, "precision": "bf16-mixed"},
    }  # fmt: skip
    return fit_seconds(recipe, folder)


def theirs(folder: Path, model: Path, data: list[dict[str, str]], options: dict[str, Any]) -> float:
    """Seconds of TRL's steps over the data."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(**{
        "output_dir": str(folder / f"trl-{next(FITS)}"), "per_device_train_batch_size": BATCH, "num_train_epochs": 1, "learning_rate": 1e-4, "use_cpu": True,
        "report_to": "none", "save_strategy": "no", "logging_strategy": "no", "completion_only_loss": True, "bf16": True, "max_length": 1024,
        "gradient_checkpointing": False, "disable_tqdm": True, "lr_scheduler_type": "constant", "dataloader_pin_memory": False, **options,
    })  # fmt: skip
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype="float32"), args=config, processing_class=AutoTokenizer.from_pretrained(model),
        train_dataset=Dataset.from_list([{"prompt": r["prompt"], "completion": r["completion"]} for r in data]), peft_config=LoraConfig(**LORA),
    )  # fmt: skip
    return peer_seconds(trainer)


def sft(folder: Path, vocabulary: int = VOCABULARY) -> Row:
    """The row; with a vocabulary of 32,000 it is the one whose memory is compared."""
    folder = folder / f"sft-{vocabulary}"
    data, model = sft_rows(STEPS * BATCH), build_model(folder, vocabulary)
    large = vocabulary != VOCABULARY  # there its memory is what counts: the two configurations that are fastest at 8,192, one round
    tried = {name: CANDIDATES[name] for name in ("group by length, batches of 4", "batches of 2")} if large else CANDIDATES
    count = sum(words(row["completion"]) + 1 for row in data)
    return Row(
        "completion tokens/s", "TRL SFTTrainer", lambda: count / ours(folder, model, data),
        {name: lambda o=options: count / theirs(folder, model, data, o) for name, options in tried.items()},
        rounds=1 if large else 3, flops=needed(sum(words(r["prompt"] + r["completion"]) + 2 for r in data), count, vocabulary) / count,
    )  # fmt: skip


sft_32k = partial(sft, vocabulary=32_000)
