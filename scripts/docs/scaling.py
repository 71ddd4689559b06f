"""The tables of docs/scaling.md: the shipped recipe with LoRA and in full on 1, 8, 64 and 512 devices.

Run as: python -m scripts.docs.scaling [what `speedlit plan` takes, such as --measured FILE or --plan.network_gb_s 50]
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from speedlit.pipeline.config import RunConfig
from speedlit.pipeline.configure import configure
from speedlit.pipeline.slurm import TRAINING
from speedlit.planning.measured import read_measured
from speedlit.planning.plan import plan
from speedlit.planning.show import hours

GPUS = (1, 8, 64, 512)
SHOWN = ("junior", "senior", "embedder")  # the revisor trains as the junior does
STEPS = ("stage", "weights", "GPUs", "strategy", "s a step", "tokens/s", "efficiency", "what limits", "batch grows", "GB a device", "hours")
WHOLE = ("weights", "GPUs", "hours", "GPU hours", "USD at 2 an hour", "hours at 40 % of the peak")


def planned(words: list[str], measured: list[str], full: bool) -> dict[str, Any]:
    """The plan of the shipped recipe, with its adapters or without."""
    config: RunConfig = configure("speed", words, None, None)
    if full:
        for stage in TRAINING:
            getattr(config, stage).set = {"model": {"init_args": {"adapter": None}}}
    return plan(config, GPUS, read_measured(measured, TRAINING))


def rows(found: dict[str, Any], weights: str) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of both tables."""
    steps = []
    for row in found["scaling"]:
        figures = [f"{row['seconds']:.3g}", f"{row['tokens_per_second']:,.0f}", f"{row['efficiency']:.0%}", row["limit"], f"{row['weak_efficiency']:.0%}"]
        held = f"{row['memory'] / 1e9:,.0f}" + ("" if row["fits"] else " (too much)")
        if row["stage"] in SHOWN:
            steps.append([row["stage"], weights, f"{row['gpus']}", row["way"], *figures, held, f"{row['hours']:.2f}"])
    usd = [f"{row['device_usd']:,.0f}" for row in found["whole"]]
    whole = [
        [weights, f"{row['gpus']}", hours(row["hours"]), f"{row['device_hours']:,.0f}", cost, hours(row["cautious_hours"])]
        for row, cost in zip(found["whole"], usd, strict=True)
    ]
    return steps, whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--measured", action="append", default=[])
    args, words = parser.parse_known_args()
    sides = [rows(planned(words, args.measured, full), name) for full, name in ((False, "LoRA"), (True, "full"))]
    for number, head in enumerate((STEPS, WHOLE)):
        lines = [head, ["---"] * len(head), *(row for side in sides for row in side[number])]
        print("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
