"""One self-contained HTML page about a run: no network, no script."""

from __future__ import annotations

from html import escape
from typing import Any

from speedlit.report.tables import Table, tables

STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 80rem; margin: 2rem auto; padding: 0 1rem }
section { overflow-x: auto; margin: 2rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
caption { text-align: left; font-weight: 600; font-size: 1.15rem; padding: .4rem 0 }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent) }
th:first-child, td:first-child { text-align: left }
p.note { opacity: .75; max-width: 60rem; white-space: pre-line }
"""


def page(name: str, summary: dict[str, Any]) -> str:
    """The whole document; every text that a model wrote is escaped."""
    body = "\n".join(section(table) for table in tables(summary))
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>speedlit: {escape(name)}</title><style>{STYLE}</style></head>\n<body>\n<h1>{escape(name)}</h1>\n{body}\n</body>\n</html>\n"
    )


def section(table: Table) -> str:
    """One table with its note."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    rows = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f"<section><table><caption>{escape(table.title)}</caption><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>{note}</section>"
