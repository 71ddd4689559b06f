"""``speedlit study``: how far the scores grow with the data, what each stage is worth, and whether other models agree."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

from speedlit.commands.run import quiet_libraries
from speedlit.pipeline.configure import configure


def run(argv: list[str]) -> int:
    """Parse the words after ``study``, do the study, print its tables."""
    parser = argparse.ArgumentParser(
        prog="speedlit study",
        description="Study a finished run: scaling (nested subsets, the line score = a + b log10 N), ablation (stages switched off, DPO replaced by SFT on "
        "the chosen answers), cross-model (other embedder backbones and generator bases). Several seeds, intervals, and scores by topic frequency.",
        epilog="The section `study` of the config says what is trained; --profile small lays the shipped recipe study/small over it, and any key can be "
        "overridden: --study.seeds 5. What is trained already is not trained again. Example: speedlit study scaling --config demo --profile small",
        allow_abbrev=False,
    )
    parser.add_argument("kind", choices=["scaling", "ablation", "cross-model"])
    parser.add_argument("--config", required=True, help="the run's: YAML file, or a shipped recipe's name (`speedlit list`)")
    parser.add_argument("--root", help="folder of the run (default: the config's root)")
    parser.add_argument("--profile", help="recipe with a section `study` that is laid over the config's: small, or a YAML file")
    known, rest = parser.parse_known_args(argv)
    from speedlit.study.profile import words

    config = configure(known.config, [*words(known.profile), *rest], known.root)
    quiet_libraries()
    if config.threads:
        os.environ.setdefault("OMP_NUM_THREADS", str(config.threads))
    from speedlit.report.tables import draw
    from speedlit.study.run import study
    from speedlit.study.tables import tables

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends like Ctrl-C: workers are closed
    found = study(known.kind, config)
    draw(tables(found))
    print(f"\nfigures: {Path(config.root) / 'study' / known.kind / 'summary.json'}")
    return 0
