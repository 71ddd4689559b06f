"""The few pieces of HTML that the page is put together from. Every text passes ``escape`` here."""

from __future__ import annotations

from html import escape

from speedlit.report.tables import Table

ALARM = " !"  # what the tables put behind a figure that is an alarm


def section(name: str, title: str, *parts: str) -> str:
    """A titled part of the page that the list of contents leads to; "" without parts."""
    body = "\n".join(part for part in parts if part)
    return f'<section id="{name}" aria-labelledby="{name}-title">\n<h2 id="{name}-title">{escape(title)}</h2>\n{body}\n</section>' if body else ""


def note(text: str) -> str:
    """A paragraph in small type; line breaks stay."""
    return f'<p class="note">{escape(text)}</p>' if text else ""


def folded(title: str, *parts: str) -> str:
    """What is there for those who ask: closed on the screen, open in print."""
    return f"<details><summary>{escape(title)}</summary>\n" + "\n".join(parts) + "\n</details>"


def table(drawn: Table) -> str:
    """One table with its note, in a frame that scrolls sideways (by keyboard too); alarms are marked by more than their colour."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in drawn.head)
    rows = "\n".join(row(cells) for cells in drawn.rows)
    label = escape(drawn.title, quote=True)
    return (
        f'<div class="frame" role="region" aria-label="{label}" tabindex="0"><table><caption>{escape(drawn.title)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>{note(drawn.note)}"
    )


def row(cells: list[str]) -> str:
    """A row whose first cell is its heading; a row of a heading alone divides the table."""
    if len(cells) == 1:
        return f'<tr class="group"><th scope="rowgroup" colspan="99">{escape(cells[0])}</th></tr>'
    first, rest = cells[0], cells[1:]
    return f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td{kind(cell)}>{escape(cell)}</td>" for cell in rest) + "</tr>"


def kind(cell: str) -> str:
    """The class of a cell: an alarm, words, or a figure so long that print may break it."""
    if cell.endswith(ALARM):
        return ' class="alarm"'
    return f' class="{"words" if cell[0].isalpha() else "long"}"' if len(cell) > 24 else ""


def figure(drawing: str, caption: str, style: str = "") -> str:
    """A drawing with its caption."""
    named = f' class="{style}"' if style else ""
    return f"<figure{named}>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"
