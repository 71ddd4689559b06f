"""Labelled texts as contrastive rows: another text of the same label is the positive, texts of other labels are hard negatives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from speedlit.errors import UsageError


def labelled_pairs(rows: Iterable[dict[str, Any]], text: str = "text", label: str = "label", negatives: int = 1, seed: int = 0) -> Iterator[dict[str, Any]]:
    """One row per text, in their order, with partners drawn anew for each from ``seed``.

    Args:
        rows: objects with a text and a label.
        text: key of the text.
        label: key of the label (a text or a number).
        negatives: hard negatives per row, each of a label of its own as far as there are enough labels.
        seed: of the draws.

    Yields:
        Rows of the contrastive shape, kind classification, with the labels of the documents: so that no text of the query's
        own label ever counts as a negative.

    Raises:
        UsageError: a row without one of the keys, or fewer than two labels.
    """
    table = [(_value(row, text, number), _value(row, label, number)) for number, row in enumerate(rows)]
    members: dict[str, list[int]] = {}
    for number, (_, name) in enumerate(table):
        members.setdefault(name, []).append(number)
    if len(members) < 2:
        raise UsageError(f"{len(members)} label(s) under {label!r}: contrastive pairs need at least two")
    names = sorted(members)
    for number, (query, name) in enumerate(table):
        draw = np.random.default_rng([seed, number])
        partners = [m for m in members[name] if table[m][0] != query]
        if not partners:
            continue  # the only text of its label
        others = [other for other in names if other != name]
        chosen = [others[i] for i in draw.permutation(len(others))[:negatives]]
        chosen += [others[i] for i in draw.integers(len(others), size=negatives - len(chosen))]
        documents = [partners[draw.integers(len(partners))], *(members[other][draw.integers(len(members[other]))] for other in chosen)]
        yield {
            "kind": "classification", "instruction": "", "query": query, "positive": table[documents[0]][0],
            "negatives": [table[d][0] for d in documents[1:]], "labels": [table[d][1] for d in documents],
        }  # fmt: skip


def _value(row: dict[str, Any], key: str, number: int) -> str:
    value = row.get(key)
    if value is None or isinstance(value, (list, dict)):
        raise UsageError(f"row {number} has no text or number under {key!r}; it has {', '.join(row)}")
    return str(value)
