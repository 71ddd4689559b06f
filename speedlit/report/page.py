"""One self-contained HTML page about a run: it asks the network for nothing, and no text of a model is ever read as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from speedlit.report.browser import browser
from speedlit.report.costs import costs
from speedlit.report.curves import curves
from speedlit.report.gates import gates
from speedlit.report.loop_picture import loop_picture, seconds, short
from speedlit.report.markup import folded, section, table
from speedlit.report.records import LIMIT, browsed
from speedlit.report.scaling import scaling
from speedlit.report.scores import scores
from speedlit.report.tables import difference_table, quality_table, stage_table

STATIC = Path(__file__).resolve().parent / "static"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(
    name: str,
    summary: Mapping[str, Any],
    folders: Mapping[str, Path] | None = None,
    root: Path | None = None,
    data: Path | None = None,
    records: int = LIMIT,
) -> str:
    """The whole document, with a part for everything that there is so far.

    Args:
        name: of the run.
        summary: as ``summarise`` makes it.
        folders: of the finished stages, by name; without them there are no curves and no records.
        root: the run's folder, for studies below it.
        data: the folder of local evaluation sets.
        records: at most about so many in the browser.
    """
    folders = folders or {}
    parts = {
        "loop": (
            "The loop",
            loop_picture(summary["stages"], summary.get("costs"), summary.get("alarms", ())),
            folded("Every stage", table(stage_table(dict(summary["stages"])))),
        ),
        "gates": ("Quality gates", gates(summary)),
        "quality": ("Record quality on held-out prompts", quality(summary.get("quality"))),
        "curves": ("Training", curves(folders)),
        "scores": ("Embedder", scores(summary.get("embedders"), data)),
        "scaling": ("Scaling", scaling(root) if root else ""),
        "costs": ("What a sample cost", costs(summary.get("costs"))),
        "records": ("Records", browser(browsed(folders, records))),
    }
    drawn = {key: section(key, title, *body) for key, (title, *body) in parts.items()}
    links = "".join(f'<li><a href="#{key}">{escape(parts[key][0])}</a></li>' for key, text in drawn.items() if text)
    body = "\n".join(filter(None, drawn.values()))
    head = "".join(
        [
            f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">',
            f"<title>speedlit: {escape(name)}</title>\n<style>\n{static('report.css')}</style>",
        ]
    )
    top = f'<header><p class="brand">speedlit report</p><h1>{escape(name)}</h1>\n{facts(summary)}\n<nav aria-label="Contents"><ul>{links}</ul></nav></header>'
    content = f'<a class="skip" href="#content">To the content</a>\n{top}\n<main id="content" tabindex="-1">\n{body}\n</main>'
    script = f"<script>\n{static('report.js')}</script>"
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{content}\n{script}\n</body>\n</html>\n'


def static(name: str) -> str:
    """A packaged file that is written into the page."""
    return (STATIC / name).read_text(encoding="utf-8")


def quality(found: Mapping[str, Any] | None) -> str:
    """What the exact checker says; "" where the teacher has none."""
    return "\n".join([table(quality_table(dict(found))), table(difference_table(dict(found)))]) if found else ""


def facts(summary: Mapping[str, Any]) -> str:
    """The run in five figures."""
    stages, costs = summary["stages"], summary.get("costs") or {}
    alarms = len(summary.get("alarms", ()))
    figures = {
        "stages finished": f"{len(stages)}",
        "time": seconds(sum(stage["seconds"] for stage in stages.values())),
        "teacher calls": short(sum(stage["calls"] for stage in stages.values())),
        "tokens": short(sum(stage["tokens_in"] + stage["tokens_out"] for stage in stages.values() if stage["calls"])),
        "accepted samples": short(costs["accepted"]) if costs.get("accepted") else "none yet",
        "alarms": str(alarms),
    }
    return '<dl class="facts">' + "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in figures.items()) + "</dl>"
