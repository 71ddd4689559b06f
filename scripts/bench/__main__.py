"""Side by side with peers: ratios from one interleaved run (A B A B ...), medians, on the same model, data and threads.

    python -m scripts.bench              # all rows
    python -m scripts.bench --rounds 3 --rows sft generation

Absolute figures of a shared machine mean little; the ratio is the result. The model is the demo's packaged base.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from rich.console import Console
from rich.table import Table

from scripts.bench.client import client
from scripts.bench.generation import generation
from scripts.bench.sft import sft

ROWS: dict[str, Callable[[Path], tuple[str, str, Callable[[], float], Callable[[], float]]]] = {"generation": generation, "sft": sft, "client": client}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds of each side, after one that does not count")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.rows:
            unit, peer, ours, theirs = ROWS[name](Path(folder))
            pairs = [(ours(), theirs()) for _ in range(args.rounds + 1)][1:]
            ratios = [a / b for a, b in pairs]
            a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
            ratio = {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
            results.append({"row": name, "unit": unit, "peer": peer, "ours": a, "theirs": b, **ratio})
            print(f"{name}: {ratio['ratio']:.2f}x", file=sys.stderr)
    table = Table(title=f"{torch.get_num_threads()} thread(s), torch {torch.__version__}, median of {args.rounds} rounds", title_justify="left")
    for head in ("what", "unit", "speedlit", "peer", "peer's", "ratio [min, max]"):
        table.add_column(head)
    for r in results:
        table.add_row(r["row"], r["unit"], f"{r['ours']:.1f}", r["peer"], f"{r['theirs']:.1f}", f"{r['ratio']:.2f} [{r['low']:.2f}, {r['high']:.2f}]")
    Console(width=140).print(table)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
