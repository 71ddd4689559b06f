"""``speedlit run``: the whole loop, resumable."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from speedlit.errors import UsageError
from speedlit.pipeline.configure import configure

FREE = ("set", "prices", "answer_tokens")  # mappings whose keys are the user's


def run(argv: list[str]) -> int:
    """Parse the words after ``run``, run the loop, print its tables."""
    parser = argparse.ArgumentParser(
        prog="speedlit run",
        description="Run the SPEED loop: topics tasks seed junior candidates preferences senior revisions revisor "
        "synthesis refinement dataset embedder evaluation report.",
        epilog="Any key of the config can be overridden: --counts.seed 100. Example: speedlit run --config demo --root runs/demo",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="YAML file, or a shipped recipe's name (`speedlit list`)")
    parser.add_argument("--root", help="folder of the run (default: the config's root)")
    parser.add_argument("--topics", help="topic file, one path a line (same as --topics.file)")
    parser.add_argument("--until", metavar="STAGE", help="stop after this stage")
    parser.add_argument("--from", dest="start", metavar="STAGE", help="redo this stage and what depends on it")
    parser.add_argument("--only", metavar="STAGE", help="this stage alone; those before it have to be finished")
    parser.add_argument("--shard", metavar="i/n", help="with --only: do the i-th of n parts (i from 0)")
    parser.add_argument("--executor", choices=["local", "slurm"], default="local", help="slurm: each stage a job, submitted and followed from here")
    parser.add_argument("--detach", action="store_true", help="with --executor slurm: submit and leave; the same command without it follows")
    parser.add_argument("--print_config", action="store_true", help="print the config with every key and what it means, and stop")
    known, rest = parser.parse_known_args(argv)
    config = configure(known.config, rest, known.root, known.topics)
    if known.print_config:
        from speedlit.pipeline.commented import dump, of_dataclass

        print(f"# speedlit run --config {known.config}, with every key. Start: speedlit run --config FILE, where FILE holds this.")
        print(dump(config.plain(), of_dataclass(config), lambda path: path[-1] not in FREE), end="")
        return 0
    check_words(known)
    quiet_libraries()
    if config.threads:
        os.environ.setdefault("OMP_NUM_THREADS", str(config.threads))
    from speedlit.pipeline.loop import Wanted
    from speedlit.pipeline.loop import run as loop

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends like Ctrl-C: everything is closed
    if known.only:
        from speedlit.commands.synth import parse_shard
        from speedlit.pipeline.loop import run_stage

        run_stage(config, known.only, parse_shard(known.shard))
        return 0
    if known.executor == "slurm":
        from speedlit.pipeline import slurm

        summary = slurm.run(config, Wanted(known.until, known.start), known.detach)
    else:
        summary = loop(config, Wanted(known.until, known.start))
    from speedlit.report.tables import show

    show(summary)
    page = Path(config.root) / "report.html"
    if "report" in summary["stages"] and page.exists():
        print(f"\nfigures: {Path(config.root) / 'summary.json'}   page: {page}")
    if known.until in summary["stages"] and "report" not in summary["stages"]:
        print(f"records and models are in {Path(config.root) / 'stages'}; the same command without --until goes on, `speedlit report {config.root}` shows them")
    return 0


def check_words(known: argparse.Namespace) -> None:
    """Options that say nothing together.

    Raises:
        UsageError: which, and what to write.
    """
    if known.only and (known.until or known.start or known.executor == "slurm"):
        raise UsageError("--only runs one stage here; leave --until, --from and --executor slurm away")
    if known.shard and not known.only:
        raise UsageError("--shard i/n is a part of one stage; name it with --only STAGE")
    if known.detach and known.executor != "slurm":
        raise UsageError("--detach leaves jobs to Slurm; add --executor slurm")


def quiet_libraries() -> None:
    """Keep libraries' own bars and notices out of the run's lines; errors still show."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("BITSANDBYTES_NOWELCOME", "1")
    if not sys.warnoptions:
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
        import warnings

        warnings.simplefilter("ignore")
