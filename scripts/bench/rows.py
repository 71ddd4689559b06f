"""The rows by name, in the order of the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scripts.bench.client import client
from scripts.bench.dpo import dpo, dpo_precomputed
from scripts.bench.embedding import embedding, embedding_512
from scripts.bench.encode import encode, encode_bf16, encode_bf16_stock, encode_stock
from scripts.bench.generation import generation
from scripts.bench.loader import loader
from scripts.bench.row import Row
from scripts.bench.sft import sft, sft_32k

ROWS: dict[str, Callable[[Path], Row]] = {
    "sft": sft, "sft_32k": sft_32k, "dpo": dpo, "dpo_precomputed": dpo_precomputed, "embedding": embedding, "embedding_512": embedding_512,
    "generation": generation, "client": client, "loader": loader, "encode": encode, "encode_bf16": encode_bf16,
    "encode_stock": encode_stock, "encode_bf16_stock": encode_bf16_stock,
}  # fmt: skip
MEMORY = ("sft_32k", "dpo", "embedding")  # rows whose peak memory is compared
