"""Sampling from a small model: our decode loop against ``transformers``' ``generate``, records per second."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from scripts.bench.data import rows
from scripts.bench.row import Row
from speedlit.context import Request, Sampling
from speedlit.generation.local import LocalBackend
from speedlit.models.backbone import resolve
from speedlit.models.folder import load_folder

COUNT, BATCH, NEW = 512, 128, 48


def generation(folder: Path) -> Row:
    """The row."""
    prompts = [row["prompt"] for row in rows(COUNT)]
    backend = LocalBackend(Path(resolve("speedlit:base")), batch_size=BATCH, processes=1)
    requests = [Request(str(i), [{"role": "user", "content": p}], Sampling(1.0, 1.0, NEW, i)) for i, p in enumerate(prompts)]
    loaded = load_folder("speedlit:base")
    tokenizer = loaded.tokenizer
    tokenizer.padding_side = "left"

    def ours() -> float:
        start = time.perf_counter()
        assert len(list(backend.generate(requests))) == COUNT
        return COUNT / (time.perf_counter() - start)

    @torch.no_grad()
    def theirs() -> float:
        start = time.perf_counter()
        order = sorted(prompts, key=len)  # length-bucketed, as a careful user would
        for at in range(0, COUNT, BATCH):
            batch = tokenizer(order[at : at + BATCH], return_tensors="pt", padding=True)
            batch.pop("token_type_ids", None)
            loaded.model.generate(**batch, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=NEW, use_cache=True)
        return COUNT / (time.perf_counter() - start)

    return Row("records/s", "transformers", ours, {"generate, by length": theirs})
