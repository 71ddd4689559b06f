"""Contrastive training with LoRA: our module against sentence-transformers' cached loss, pairs per second of training."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from scripts.bench.data import build_model, contrastive_rows, needed, words
from scripts.bench.row import FITS, Row, fit_seconds, peer_seconds
from scripts.bench.sft import LORA
from speedlit.data.shards import write_shards

# mini-batch size in texts, or a budget in tokens. Slower at 128 pairs here and left out, for the time they take: 128 texts (1.07 pairs/s),
# 4,096 tokens (1.70)
CANDIDATES: dict[str, dict[str, int]] = {
    "mini-batch 32 (default)": {"mini_batch_size": 32},
    "mini-batch 8": {"mini_batch_size": 8},
    "1,024 tokens": {"mini_batch_num_tokens": 1024},
}


def ours(folder: Path, model: Path, data: list[dict[str, Any]], batch: int) -> float:
    """Seconds of our steps over the data."""
    if not (folder / "contrastive").is_dir():
        write_shards(data, folder / "contrastive", "contrastive")
    recipe = {
        "model": {"class_path": "EmbeddingModule", "init_args": {
            "backbone": {"name": str(model)}, "adapter": {"class_path": "LoRA", "init_args": {"r": 16, "alpha": 32}},
            "tokens": {"max_length": 512, "query_template": "{text}"}, "schedule": {"kind": "constant"}, "temperature": 0.05, "recompute": True,
        }},
        "data": {"class_path": "ContrastiveData", "init_args": {"shards": str(folder / "contrastive"), "batch_size": batch}},
        "trainer": {"max_epochs": 1, "precision": "bf16-mixed"},
    }  # fmt: skip
    return fit_seconds(recipe, folder)


def theirs(folder: Path, model: Path, data: list[dict[str, Any]], batch: int, options: dict[str, int]) -> float:
    """Seconds of sentence-transformers' steps over the data."""
    from datasets import Dataset
    from peft import LoraConfig
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    network = Transformer(str(model), max_seq_length=512, model_kwargs={"dtype": "float32"})
    network.tokenizer.padding_side = "right"
    encoder = SentenceTransformer(modules=[network, Pooling(384, pooling_mode="lasttoken")], device="cpu")
    encoder.add_adapter(LoraConfig(**{**LORA, "task_type": "FEATURE_EXTRACTION"}))
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / f"st-{next(FITS)}"), per_device_train_batch_size=batch, num_train_epochs=1, learning_rate=1e-4, use_cpu=True, bf16=True,
        report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, lr_scheduler_type="constant", dataloader_pin_memory=False,
    )  # fmt: skip
    columns = {"anchor": "query", "positive": "positive"}
    rows = [{**{new: row[old] for new, old in columns.items()}, "negative": row["negatives"][0]} for row in data]
    trainer = SentenceTransformerTrainer(
        model=encoder, args=arguments, train_dataset=Dataset.from_list(rows), loss=CachedMultipleNegativesRankingLoss(encoder, **options)
    )
    return peer_seconds(trainer)


def embedding(folder: Path, batch: int = 128) -> Row:
    """The row of one step of ``batch`` queries, each with a positive and a hard negative."""
    folder = folder / f"embedding-{batch}"
    data, model = contrastive_rows(batch), build_model(folder)
    few = CANDIDATES if batch <= 128 else {name: CANDIDATES[name] for name in ("1,024 tokens",)}  # the fastest at 128; a step takes minutes
    return Row(
        "pairs/s", "sentence-transformers, cached loss", lambda: batch / ours(folder, model, data, batch),
        {name: lambda o=options: batch / theirs(folder, model, data, batch, o) for name, options in few.items()},
        rounds=2 if batch <= 128 else 1, flops=needed(sum(words(" ".join([r["query"], r["positive"], *r["negatives"]])) + 6 for r in data), 0) / batch,
    )  # fmt: skip


embedding_512 = partial(embedding, batch=512)
