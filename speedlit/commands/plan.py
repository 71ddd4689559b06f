"""``speedlit plan``: what a run will take, before anything is spent."""

from __future__ import annotations

import argparse
import json
from typing import Any

from speedlit.errors import UsageError
from speedlit.pipeline.configure import configure


def run(argv: list[str]) -> int:
    """Parse the words after ``plan``, print the plan."""
    parser = argparse.ArgumentParser(
        prog="speedlit plan",
        description="Say what a run will take, stage by stage: calls, tokens, USD, generator hours, training FLOPs, memory. Asks no teacher, loads no model.",
        epilog="Any key of the config can be overridden: --counts.seed 100. Example: speedlit plan --config speed --topics topics.txt",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="YAML file, or a shipped recipe's name (`speedlit list`)")
    parser.add_argument("--root", help="folder of the run (default: the config's root)")
    parser.add_argument("--topics", help="topic file, one path a line (same as --topics.file)")
    parser.add_argument("--gpus", help="also say the speed of training on so many devices: 1,8,64,512")
    parser.add_argument("--measured", action="append", default=[], metavar="WORD", help="what training's speed rests on (may be given again): a file of "
                        "`python -m scripts.bench.layer`, STAGE=SECONDS of a step on one device, or STAGE=throughput.json of such a fit")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    known, rest = parser.parse_known_args(argv)
    config = configure(known.config, rest, known.root, known.topics)
    from speedlit.pipeline.slurm import TRAINING
    from speedlit.planning.measured import read_measured
    from speedlit.planning.plan import plan

    found = plan(config, read_counts(known.gpus), read_measured(known.measured, TRAINING))
    if known.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    show(found)
    return 0


def read_counts(text: str | None) -> list[int]:
    """Numbers with commas.

    Raises:
        UsageError: something else.
    """
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    if not all(word.isascii() and word.isdigit() and len(word) <= 7 and 1 <= int(word) <= 1_000_000 for word in words) or (text is not None and not words):
        raise UsageError(f"--gpus {text}: give numbers of devices from 1 on with commas, such as 1,8,64,512")
    return [int(word) for word in words]


def show(found: dict[str, Any]) -> None:
    """Tables, then what was assumed and what stands in the way."""
    from speedlit.planning.show import tables
    from speedlit.report.tables import draw

    draw(tables(found))
    for title in ("assumed", "caveats", "warnings"):
        if found[title]:
            print(f"\n{title}:")
        for line in found[title]:
            print(f"- {line}")
