"""``speedlit doctor``: what this machine can do, and what of a given config won't work here."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

HEAD = "ok = there, -- = missing or slow, which only some configs mind, !! = won't work"


def run(argv: list[str]) -> int:
    """Print the findings; 1 where a given config can't run here."""
    parser = argparse.ArgumentParser(
        prog="speedlit doctor",
        description="Say what this machine can do, and with --config what of that config won't work here and how to mend it. Trains nothing, asks no teacher.",
        epilog="Keys of the config can be overridden: --trainer trainer/cpu.yaml. Example: speedlit doctor --config speed --topics.file topics.txt",
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="append", default=[], help="a run's config or a fit's recipe: file, or shipped name (`speedlit list`)")
    known, words = parser.parse_known_args(argv)
    if words and not known.config:
        parser.error(f"{words[0]} is a key of a config; name the config with --config")
    from speedlit.commands.run import quiet_libraries
    from speedlit.pipeline.machine import BAD, Finding, machine
    from speedlit.pipeline.suited import suited

    def draw(title: str, found: Iterable[Finding]) -> None:
        print(title)
        for finding in found:
            print(f"  {finding.mark} {finding.name:<14} {finding.text}".rstrip())
            if finding.remedy:
                print(f"     {'':<14} -> {finding.remedy}")

    quiet_libraries()
    judged = suited(known.config, words) if known.config else []  # a config that isn't there is told before the machine is looked at
    print(HEAD + "\n")
    draw("this machine", machine())
    if not known.config:
        return 0
    draw(f"\n{' '.join(known.config)} on it", judged)
    stops = any(finding.mark == BAD for finding in judged)
    print("\nit can't run here: what is marked !! has to be mended first" if stops else "\nit can run here")
    return int(stops)
