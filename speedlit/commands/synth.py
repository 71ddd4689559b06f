"""``speedlit synth STAGE``: one synthesis stage, or one shard of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from speedlit.commands.run import quiet_libraries
from speedlit.errors import UsageError
from speedlit.pipeline.configure import configure


def run(argv: list[str]) -> int:
    """Parse the words after ``synth`` and run the stage.

    Raises:
        UsageError: no such stage, a shard that is not ``i/n``, or an unfinished stage before it.
    """
    parser = argparse.ArgumentParser(
        prog="speedlit synth",
        description="Run one synthesis stage of a run: topics tasks seed candidates preferences revisions synthesis refinement dataset.",
        epilog="Example: speedlit synth seed --config speed --shard 0/8. After all shards, the same command without --shard puts them together at no cost.",
        allow_abbrev=False,
    )
    parser.add_argument("stage", help="the stages before it have to be finished")
    parser.add_argument("--config", required=True, help="YAML file, or a shipped recipe's name (`speedlit list`)")
    parser.add_argument("--root", help="folder of the run (default: the config's root)")
    parser.add_argument("--topics", help="topic file, one path a line (same as --topics.file)")
    parser.add_argument("--shard", metavar="i/n", help="do the i-th of n parts (i from 0)")
    known, rest = parser.parse_known_args(argv)
    from speedlit.pipeline.loop import run_stage, stages

    every = stages()
    if known.stage not in every or not every[known.stage].synthesis:
        raise UsageError(f"no synthesis stage {known.stage!r}; there are {' '.join(s.name for s in every.values() if s.synthesis)}")
    config = configure(known.config, rest, known.root, known.topics)
    quiet_libraries()
    run_stage(config, known.stage, parse_shard(known.shard))
    print(f"{known.stage}: {Path(config.root) / 'stages'}")
    return 0


def parse_shard(text: str | None) -> tuple[int, int]:
    """``3/8`` -> (3, 8); None is the whole.

    Raises:
        UsageError: anything else.
    """
    if text is None:
        return 0, 1
    index, slash, count = text.partition("/")
    if not slash or not index.isdigit() or not count.isdigit() or int(count) < 1 or int(index) >= int(count):
        raise UsageError(f"--shard {text}: write i/n with 0 <= i < n, such as 0/8")
    return int(index), int(count)
