"""DPO with LoRA: our module against TRL's DPOTrainer, pairs per second of training."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from scripts.bench.data import build_model, needed, preference_rows, words
from scripts.bench.row import FITS, Row, fit_seconds, peer_seconds
from scripts.bench.sft import LORA
from speedlit.data.shards import write_shards

STEPS, BATCH = 1, 16
CANDIDATES: dict[str, dict[str, Any]] = {
    "default": {"gradient_checkpointing": True},
    "no checkpointing": {},
    "batches of 4": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    "batches of 1": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16},
}


def ours(folder: Path, model: Path, data: list[dict[str, str]], precomputed: bool) -> float:
    """Seconds of our steps over the data; the pass that precomputes references lies before them."""
    if not (folder / "preference").is_dir():
        write_shards(data, folder / "preference", "preference")
    recipe = {
        "model": {"class_path": "DPOModule", "init_args": {
            "backbone": {"name": str(model)}, "adapter": {"class_path": "LoRA", "init_args": {"r": 16, "alpha": 32}},
            "tokens": {"max_length": 1024}, "schedule": {"kind": "constant"}, "reference": "precomputed" if precomputed else "adapter_off",
        }},
        "data": {"class_path": "PreferenceData", "init_args": {"shards": str(folder / "preference"), "batch_size": BATCH}},
        "trainer": {"max_epochs": 1, "precision": "bf16-mixed"},
    }  # fmt: skip
    return fit_seconds(recipe, folder)


def theirs(folder: Path, model: Path, data: list[dict[str, str]], options: dict[str, Any]) -> float:
    """Seconds of TRL's steps over the data."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(**{
        "output_dir": str(folder / f"trl-{next(FITS)}"), "per_device_train_batch_size": BATCH, "num_train_epochs": 1, "learning_rate": 1e-4, "use_cpu": True,
        "report_to": "none", "save_strategy": "no", "logging_strategy": "no", "bf16": True, "max_length": 1024, "gradient_checkpointing": False,
        "disable_tqdm": True, "lr_scheduler_type": "constant", "dataloader_pin_memory": False, **options,
    })  # fmt: skip
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype="float32"), args=config, processing_class=AutoTokenizer.from_pretrained(model),
        train_dataset=Dataset.from_list([{key: r[key] for key in ("prompt", "chosen", "rejected")} for r in data]), peft_config=LoraConfig(**LORA),
    )  # fmt: skip
    return peer_seconds(trainer)


def dpo(folder: Path, precomputed: bool = False) -> Row:
    """The row; ``precomputed``: both sides have the reference's log-probs before training."""
    folder = folder / "dpo"
    data, model = preference_rows(STEPS * BATCH), build_model(folder)
    predicted = sum(words(r["chosen"]) + words(r["rejected"]) + 2 for r in data)
    tokens = predicted + sum(2 * words(r["prompt"]) + 2 for r in data)
    extra = {"precompute_ref_log_probs": True} if precomputed else {}
    return Row(
        "pairs/s", "TRL DPOTrainer", lambda: len(data) / ours(folder, model, data, precomputed),
        {name: lambda o=options: len(data) / theirs(folder, model, data, {**extra, **o}) for name, options in CANDIDATES.items()},
        flops=needed(tokens, predicted) / len(data),
    )  # fmt: skip


dpo_precomputed = partial(dpo, precomputed=True)
