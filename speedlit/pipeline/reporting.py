"""The ``report`` stage: one HTML page from the summary."""

from __future__ import annotations

from speedlit.context import Context
from speedlit.files import atomic
from speedlit.pipeline.loop import stages, summarise
from speedlit.report.page import page


def run(ctx: Context) -> None:
    """Write ``report.html`` into the stage and into the root."""
    text = page(ctx.config["name"], summarise(ctx.root, stages(), dict(ctx.config), write=False))
    for path in (ctx.out / "report.html", ctx.root / "report.html"):
        with atomic(path) as stream:
            stream.write(text)
