"""``speedlit report ROOT``: the HTML page of a run, as far as it has come."""

from __future__ import annotations

import argparse
from pathlib import Path

from speedlit.errors import UsageError
from speedlit.files import atomic, read_object


def run(argv: list[str]) -> int:
    """Parse the words after ``report`` and write the page.

    Raises:
        UsageError: the folder is not the root of a run.
    """
    parser = argparse.ArgumentParser(
        prog="speedlit report", description="Write one self-contained HTML page about a run.", epilog="Example: speedlit report runs/demo", allow_abbrev=False
    )
    parser.add_argument("root")
    parser.add_argument("--to", help="file to write (default: ROOT/report.html)")
    parser.add_argument("--records", type=int, default=50_000, metavar="N", help="answers in the record browser, at most (default: %(default)s; 0: none)")
    known = parser.parse_args(argv)
    if known.records < 0:
        raise UsageError(f"--records {known.records}: give 0 or more")
    root = Path(known.root)
    if not (root / "run.json").is_file():
        raise UsageError(f"{root} is not the root of a run (it has no run.json); name the folder given as --root to `speedlit run`")
    from speedlit.pipeline.reporting import document

    made = read_object(root / "run.json", "identity", "config")
    target = Path(known.to) if known.to else root / "report.html"
    with atomic(target) as stream:
        stream.write(document(root, made["identity"]["name"], made["config"], known.records))
    print(target)
    return 0
