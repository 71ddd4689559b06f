"""The record browser: the frame that the page's script fills, and the packed records that it reads."""

from __future__ import annotations

import json

from speedlit.report.markup import note
from speedlit.report.records import SOURCES, Browsed

FILTERS = {"source": "Writer", "kind": "Task kind", "fate": "What became of it", "revision": "Revision"}
KEYS = "Arrow keys, Page Up, Page Down, Home and End move in the list; Enter reads the record; Escape goes back to the list."


def browser(found: Browsed) -> str:
    """Search, filters, list and lineage; "" without records. Without script it says so."""
    if not found.parts:
        return ""
    selects = "".join(f'<label>{title}<select data-filter="{name}"><option value="">all</option></select></label>' for name, title in FILTERS.items())
    labels = json.dumps([source.label for source in SOURCES])
    data = "\n".join(f'<script type="text/plain" class="part">{part}</script>' for part in found.parts)
    share = (
        "" if found.shown == found.total else f"{found.shown:,} of the run's {found.total:,} answers are on this page: all those to prompts drawn by their id. "
    )
    return "\n".join(
        [
            note(f"{share}Every answer of every writer, with its whole lineage."),
            '<noscript><p class="verdict bad">The record browser needs JavaScript.</p></noscript>',
            '<form class="filters" role="search" aria-label="Records"><label class="search">Search',
            '<input type="search" autocomplete="off" spellcheck="false" placeholder="words, &quot;a phrase&quot;, or an id"></label>',
            f'{selects}<button type="reset">Clear</button></form>',
            '<p class="tally" role="status">unpacking ...</p>',
            '<div class="browser"><div class="list" role="listbox" tabindex="0" aria-label="Records" aria-describedby="record-keys">',
            '<div class="rows" role="presentation"></div></div>',
            '<article class="lineage" tabindex="-1" aria-label="Lineage of the record">',
            '<p class="note">Choose a record to see where it comes from and what became of it.</p></article></div>',
            f'<p class="note" id="record-keys">{KEYS}</p>',
            f'<script type="application/json" id="sources">{labels}</script>',
            data,
        ]
    )
