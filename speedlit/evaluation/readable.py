"""Texts that a score of one's own set should not rest on unsaid: empty ones, and ones so long that a model reads only their beginning.

Published sets hold both and are scored with them, as mteb does. In a set of one's own they are a mistake until its row in ``tasks.json`` allows them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speedlit.data.tokens import plain_ids
from speedlit.errors import UsageError

if TYPE_CHECKING:
    from speedlit.evaluation.encoder import Encoder

ALLOWED = ("empty", "long")
LONG = 100_000  # characters; shorter texts that a model cuts are everyday matters


@dataclass
class Look:
    """What was found in the texts of one set.

    Args:
        allow: what the set may hold: ``empty``, ``long``.
        long: places and texts of the long ones, until a model says how far it reads them.
    """

    allow: Collection[str] = ()
    long: list[tuple[str, str]] = field(default_factory=list)

    def at(self, path: Path, row: int, column: str, text: str) -> None:
        """Look at one text.

        Raises:
            UsageError: it is empty.
        """
        place = f"{path}, row {row}: the text in the column {column!r}"
        if not text.strip() and "empty" not in self.allow:
            raise UsageError(f"{place} is empty; write one, take the row out, or put {_leave('empty')}")
        if len(text) >= LONG and "long" not in self.allow:
            self.long.append((place, text))


def _leave(what: str) -> str:
    return f'"allow": ["{what}"] into the set\'s row of tasks.json'


def too_long(encoder: Encoder, task: Any) -> str | None:
    """A sentence on the first long text of ``task`` that ``encoder`` would cut, or None."""
    limit = encoder.tokens.max_length
    for place, text in getattr(task, "long_texts", ()):
        count = len(plain_ids(encoder.tokenizer, [text])[0])
        if count > limit:
            read = f"of which the model would read {limit:,} tokens, about the first {len(text) * limit // count:,} characters"
            return f"{place} has {len(text):,} characters ({count:,} tokens), {read}; cut or split it, or put {_leave('long')}"
    return None


def check_lengths(encoder: Encoder, tasks: Sequence[Any]) -> None:
    """Refuse tasks of one's own with a text that ``encoder`` would cut to a fraction.

    Raises:
        UsageError: there is one.
    """
    for task in tasks:
        if found := too_long(encoder, task):
            raise UsageError(found)
