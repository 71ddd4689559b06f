"""The data path: what the loader delivers beside what a step consumes, and how soon a large shard set gives its first batch.

    python -m scripts.bench --rows loader
    python -m scripts.bench.loader --records 1000000       # seconds from `setup` to the first batch, and pairs/s after it

Rows have the lengths of SPEED's data. The large set is written first (1.9 GB for a million rows) and may be kept with --folder.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from scripts.bench import embedding
from scripts.bench.data import VOCABULARY, build_model, contrastive_rows
from scripts.bench.row import Row, now
from speedlit.data.datamodules import ContrastiveData
from speedlit.data.shards import write_chunks, write_shards
from speedlit.data.steps import StepLoader
from speedlit.data.tokens import TokenContract
from speedlit.models.backbone import load_tokenizer

BATCH, COUNT = 128, 4096
CHUNK = 40_000  # rows of a chunk, about 64 MB of text and more
KINDS = ("retrieval", "sts", "classification", "matching")


def opened(shards: Path, model: Path, batch: int, workers: int = 0) -> StepLoader:
    """The training loader that a fit would have, from `setup` on."""
    data = ContrastiveData(str(shards), batch_size=batch, workers=workers, seed=0)
    module = SimpleNamespace(tokenizer=load_tokenizer(str(model)), tokens=TokenContract(query_template="{text}"))
    device = SimpleNamespace(type="cpu")
    data.trainer = SimpleNamespace(lightning_module=module, world_size=1, global_rank=0, strategy=SimpleNamespace(root_device=device))  # type: ignore[assignment]
    data.setup("fit")
    return data.train_dataloader()


def loader(folder: Path) -> Row:
    """Pairs per second that the loader delivers, each read and encoded for the first time, and that a step consumes."""
    folder = folder / "loader"
    model = build_model(folder)
    write_shards(contrastive_rows(COUNT), folder / "many", "contrastive")
    few = contrastive_rows(BATCH)

    def ours() -> float:
        steps = opened(folder / "many", model, BATCH)
        start = now()
        count = sum(step["samples"] for step in steps)
        return count / (now() - start)

    return Row("pairs/s", "what our embedding step consumes", ours, {"LoRA, bf16-mixed": lambda: BATCH / embedding.ours(folder, model, few, BATCH)})


def many(job: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """The rows of one chunk."""
    first, count = job
    rng, words = np.random.default_rng([7, first]), np.array([f"w{i}" for i in range(VOCABULARY - 3)])
    lengths = np.clip(np.round(rng.lognormal(np.log([20, 160, 160]), 0.7, (count, 3))), 4, 510).astype(int)
    for number, sizes in enumerate(lengths, first):
        query, positive, negative = (" ".join(words[rng.integers(0, len(words), size)]) for size in sizes)
        kind = KINDS[int(rng.integers(0, len(KINDS)))]
        yield {"id": f"c{number}", "kind": kind, "instruction": "", "query": query, "positive": positive, "negatives": [negative]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=1536)
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed after the first")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the set here, and use the one that is there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        shards, model = folder / f"set-{args.records}", build_model(folder)
        if not shards.is_dir():
            jobs = [(first, min(CHUNK, args.records - first)) for first in range(0, args.records, CHUNK)]
            write_chunks(jobs, many, shards, "contrastive", lambda job: print(f"  written to row {sum(job):,}", file=sys.stderr))
        before = now()
        loader = opened(shards, model, args.batch, args.workers)
        planned = now()
        steps = iter(loader)
        next(steps)
        first = now()
        count = sum(next(steps)["samples"] for _ in range(args.steps))
        found = {
            "records": args.records, "setup_seconds": planned - before, "first_batch_seconds": first - before, "pairs_per_second": count / (now() - first),
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        }  # fmt: skip
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
