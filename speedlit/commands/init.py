"""``speedlit init``: a starter project: recipe, an own module or loss, a little data, a test that passes."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from shlex import quote

from speedlit.errors import UsageError
from speedlit.files import disk_error

STARTER = Path(__file__).resolve().parent.parent / "starter"
KINDS = {"sft": "sft", "dpo": "preference", "embedding": "contrastive", "loop": "sft"}  # kind: shape of its data


def run(argv: list[str]) -> int:
    """Write the project and say how to go on."""
    parser = argparse.ArgumentParser(
        prog="speedlit init",
        description="Write a starter project that runs at once, offline: a recipe, an own module or loss, a little data, a test.",
        epilog="Example: speedlit init my-embedder --kind embedding",
        allow_abbrev=False,
    )
    parser.add_argument("dir", help="folder of the project; it must not exist, or be empty")
    parser.add_argument("--kind", choices=tuple(KINDS), default="sft", help="what it trains; loop: the whole SPEED loop (default: sft)")
    known = parser.parse_args(argv)
    folder = Path(known.dir)
    files = write(folder, known.kind)
    print(f"{folder}: {' '.join(files)}")
    command, recipe = ("run", "run.yaml") if known.kind == "loop" else ("fit", "fit.yaml")
    print(f"train it: speedlit {command} --config {quote(str(folder / recipe))}")
    print(f"test it:  pytest {quote(str(folder))}        more: {folder / 'README.md'}")
    return 0


def write(folder: Path, kind: str) -> list[str]:
    """Copy the kind's files and make shards of its data; their names.

    Raises:
        UsageError: the folder holds something, or is a file, or a link to nothing.
        SpeedlitError: it cannot be written.
    """
    if folder.is_symlink() and not folder.exists():
        raise UsageError(f"{folder} is a link to {folder.readlink()}, which doesn't exist; make that folder, remove the link, or name another folder")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UsageError(f"{folder} is {'a file' if folder.is_file() else 'not empty'}; name a folder that doesn't exist yet")
    try:
        shutil.copytree(STARTER / kind, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    except OSError as error:
        raise disk_error(error, folder) from error
    from speedlit.data.shards import write_shards

    lines = (folder / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    write_shards(map(json.loads, lines), folder / "shards", KINDS[kind])
    return sorted(path.name for path in folder.iterdir())
