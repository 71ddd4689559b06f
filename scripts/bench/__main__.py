"""Side by side with peers: ratios from one interleaved run (A B A B ...), medians, on the same model, data and threads.

    python -m scripts.bench                          # all rows, docs/benchmarks.json
    python -m scripts.bench --rows sft dpo --rounds 1 --no-memory

Each peer is first tried in every configuration that might be its fastest, and the fastest is measured against ours. Absolute
figures of a shared machine mean little; the ratio is the result. Peak memory is that of a process of its own for each side.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from scripts.bench.machine import cpu, versions
from scripts.bench.memory import peak
from scripts.bench.row import Row
from scripts.bench.rows import MEMORY, ROWS
from speedlit.models.flops import gemm_rate

COMPARED = ("torch", "transformers", "peft", "trl", "sentence-transformers", "lightning")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--rounds", type=int, help="measured rounds of each side, after one that does not count (default: the row's own)")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--json", type=Path, default=Path("docs/benchmarks.json"), help="write the figures here")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.rows:
            start = time.perf_counter()
            results.append({"row": name, **measure(name, ROWS[name](Path(folder)), args.rounds)})
            if name in MEMORY and not args.no_memory:
                results[-1] |= memory(name, results[-1]["config"])
            results[-1]["seconds"] = round(time.perf_counter() - start)
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    show(results)
    machine = {"cpu": cpu(), "threads": torch.get_num_threads(), "bf16_gemm_gflops": gemm_rate("cpu", torch.bfloat16) / 1e9, "versions": versions(COMPARED)}
    args.json.write_text(json.dumps({"machine": machine, "rows": results}, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(name: str, row: Row, rounds: int | None) -> dict[str, Any]:
    """Find the peer's fastest configuration, then measure it against ours in turn."""
    tried: dict[str, float] = {}
    if len(row.theirs) > 1:
        for config, side in row.theirs.items():
            tried[config] = round(side(), 2)
            print(f"  {name}: {row.peer}, {config}: {tried[config]} {row.unit}", file=sys.stderr, flush=True)
    best = max(tried, key=tried.__getitem__) if tried else next(iter(row.theirs))
    row.ours()
    pairs = [(row.ours(), row.theirs[best]()) for _ in range(rounds or row.rounds)]
    ratios = [ours / theirs for ours, theirs in pairs]
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    found = {"unit": row.unit, "peer": row.peer, "config": best, "tried": tried, "ours": round(ours, 3), "theirs": round(theirs, 3)}
    found |= {"ratio": round(statistics.median(ratios), 2), "low": round(min(ratios), 2), "high": round(max(ratios), 2)}
    if row.flops:
        rate = gemm_rate("cpu", torch.bfloat16)
        found |= {"share": round(ours * row.flops / rate, 3), "share_theirs": round(theirs * row.flops / rate, 3)}
    return found


def memory(name: str, config: str) -> dict[str, Any]:
    """Peak MiB of both sides in a process of their own."""
    ours, theirs = (peak(name, side, torch.get_num_threads())["peak"] for side in ("ours", config))
    return {"memory": round(ours), "memory_theirs": round(theirs), "memory_ratio": round(ours / theirs, 2)}


def show(results: list[dict[str, Any]]) -> None:
    """The table."""
    table = Table(title=f"{torch.get_num_threads()} thread(s), torch {torch.__version__}, {cpu()}", title_justify="left")
    for head in ("row", "unit", "speedlit", "peer in its fastest configuration", "peer's", "ratio [min, max]", "of bf16 GEMM", "MiB", "of peer's"):
        table.add_column(head)
    for r in results:
        share = f"{r['share']:.0%} / {r['share_theirs']:.0%}" if "share" in r else ""
        size, part = (f"{r['memory']}", f"{r['memory_ratio']:.2f}") if "memory" in r else ("", "")
        ratio = f"{r['ratio']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
        table.add_row(r["row"], r["unit"], f"{r['ours']:.1f}", f"{r['peer']}: {r['config']}", f"{r['theirs']:.1f}", ratio, share, size, part)
    Console(width=160).print(table)


if __name__ == "__main__":
    sys.exit(main())
