"""One step on one process and on two, beside what the formula of ``speedlit plan --gpus`` says from the one and from the message's size.

    python -m scripts.bench.ranks --rounds 3

Each process has one thread, so two of them are two "devices" of this machine; they exchange over gloo on loopback. The all-reduce
of a message as large as the trained weights is timed apart from training, as one would take a link's published speed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scripts.bench.data import build_model, sft_rows

STEPS, BATCH = 4, 16


def child(folder: Path, adapter: bool) -> dict[str, float]:
    """Seconds of a step, bytes of the trained weights, and seconds of their all-reduce, on this rank."""
    import torch
    import torch.distributed as dist

    from scripts.bench.row import fit_seconds

    torch.set_num_threads(1)
    world = int(os.environ["WORLD_SIZE"])
    recipe = {
        "model": {"class_path": "SFTModule", "init_args": {
            "backbone": {"name": str(next(folder.glob("llama-*")))}, "tokens": {"max_length": 1024}, "schedule": {"kind": "constant"},
            **({"adapter": {"class_path": "LoRA", "init_args": {"r": 16, "alpha": 32}}} if adapter else {}),
        }},
        "data": {"class_path": "SFTData", "init_args": {"shards": str(folder / "sft"), "batch_size": BATCH}},
        "trainer": {"max_epochs": 1, "precision": "bf16-mixed", "devices": world, "strategy": "ddp" if world > 1 else "auto"},
    }  # fmt: skip
    seconds = fit_seconds(recipe, folder / f"fit-{world}") / STEPS
    trained = 700_416 if adapter else 17_613_696
    reduce = 0.0
    if world > 1:
        message, times = torch.zeros(trained), []
        for _ in range(7):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(message)
            times.append(time.perf_counter() - start)
        reduce = statistics.median(times)
    return {"step": seconds, "bytes": trained * 4.0, "reduce": reduce}


def launch(folder: Path, world: int, adapter: bool) -> dict[str, float]:
    """Rank 0's figures of a start with ``world`` processes."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", "-m", "scripts.bench.ranks"]
    words += ["--child", str(folder), "--adapter", str(int(adapter))]
    out = subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True)
    found: dict[str, float] = json.loads([line for line in out.stdout.splitlines() if line.startswith("{")][-1])
    return found


def compare(folder: Path, adapter: bool, rounds: int) -> dict[str, Any]:
    """Measured and predicted step of two processes."""
    pairs = [(launch(folder, 1, adapter), launch(folder, 2, adapter)) for _ in range(rounds)]
    one, two = (statistics.median(found["step"] for found in side) for side in zip(*pairs, strict=True))
    reduce = statistics.median(found["reduce"] for _, found in pairs)
    predicted = one / 2 + max(0.0, reduce - one / 4)  # hidden behind the backward pass, half of the products
    return {
        "trained": "LoRA" if adapter else "full", "message_mb": pairs[0][0]["bytes"] / 1e6, "one_s": round(one, 3), "reduce_s": round(reduce, 4),
        "two_s": round(two, 3), "predicted_two_s": round(predicted, 3), "efficiency": round(one / two / 2, 3), "predicted": round(one / predicted / 2, 3),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--adapter", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        found = child(args.child, bool(args.adapter))
        if os.environ["RANK"] == "0":
            print(json.dumps(found), flush=True)
        return 0
    from speedlit.data.shards import write_shards

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_model(folder)
        write_shards(sft_rows(STEPS * BATCH), folder / "sft", "sft")
        for adapter in (True, False):
            print(json.dumps(compare(folder, adapter, args.rounds)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
