"""The ``report`` stage: one HTML page from the summary and the files of the finished stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speedlit.context import Context
from speedlit.files import atomic
from speedlit.pipeline.loop import stages, summarise
from speedlit.report.page import page
from speedlit.report.records import LIMIT


def run(ctx: Context) -> None:
    """Write ``report.html`` into the stage and into the root."""
    text = document(ctx.root, ctx.config["name"], ctx.config)
    for path in (ctx.out / "report.html", ctx.root / "report.html"):
        with atomic(path) as stream:
            stream.write(text)


def document(root: Path, name: str, config: Mapping[str, Any], records: int = LIMIT) -> str:
    """The page of a run, as far as it has come; ``records`` is how many its browser holds at most."""
    every = stages()
    folders = {key: stage.folder(root) for key, stage in every.items() if (stage.folder(root) / "_SUCCESS").exists()}
    own = config["evaluation"]["data"]
    data = Path(own) if own else folders["dataset"] / "evaldata" if "dataset" in folders else None
    return page(name, summarise(root, every, dict(config), write=False), folders, root, data, records)
