"""Hard negatives from the data themselves: near documents that are not as near as the positive.

Each query of a contrastive row asks for the documents (positives, and texts of a corpus where one is given) that a model
puts closest to it. A document that scores nearly as high as the positive is likely one that nobody has labelled, so only
those well below the positive's own score count (the positive-aware threshold). Search and thresholds are
sentence-transformers'; queries carry their row's instruction and documents are bare, as in training.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from speedlit.errors import UsageError

if TYPE_CHECKING:
    import torch

    from speedlit.evaluation.encoder import Encoder

Row = dict[str, Any]
BREAK = "\x1f"  # between a query's instruction and its text


@dataclass(frozen=True)
class Rules:
    """Which documents become negatives.

    Args:
        negatives: how many per row at most.
        margin: a negative's score is at least this share below the positive's: 0.05 keeps those of at most 95 % of it.
        skip: leave out so many of the closest documents that pass.
        among: look at so many of the closest documents.
        ceiling: highest cosine of a negative; None: no other limit.
        replace: drop the negatives that a row has; else mined ones stand behind them.
    """

    negatives: int = 4
    margin: float = 0.05
    skip: int = 0
    among: int = 100
    ceiling: float | None = None
    replace: bool = False

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise UsageError(f"--negatives is {self.negatives}; it must be at least 1")
        if not 0 <= self.margin < 1:
            raise UsageError(f"--margin is {self.margin}; it is a share of the positive's score, from 0 up to below 1")
        if self.skip < 0 or self.among < self.skip + self.negatives:
            raise UsageError(f"--among is {self.among} and --skip {self.skip}: skip must be 0 or more, and among at least skip + negatives")


def mine(rows: Sequence[Row], encoder: Encoder, rules: Rules, corpus: Sequence[str] = ()) -> tuple[list[Row], dict[str, Any]]:
    """Rows with mined negatives, in their order, and what was found.

    Args:
        rows: of the contrastive shape.
        encoder: the model that judges closeness.
        rules: which documents count.
        corpus: further documents, for all rows; else a row's candidates are the positives of rows of its kind.

    Returns:
        The rows, and ``{"rows", "mined", "with", "rules"}``: rows, negatives found, rows that got some.

    Raises:
        UsageError: graded or labelled rows that mined negatives are to join, which would have no score or label.
    """
    for number, row in enumerate(rows):
        if not rules.replace and (row.get("scores") or row.get("labels")):
            raise UsageError(f"row {number} has {'scores' if row.get('scores') else 'labels'}, and mined negatives have none: add --replace")
    groups: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[row["kind"]].append(number)
    found: dict[int, list[str]] = {}
    for members in groups.values():
        by_pair = _search([rows[i] for i in members], encoder, rules, corpus)
        found.update({i: by_pair.get(_pair(rows[i]), []) for i in members})
    made = [_joined(row, found[number], rules) for number, row in enumerate(rows)]
    counts = [len(texts) for texts in found.values()]
    return made, {"rows": len(rows), "mined": sum(counts), "with": sum(count > 0 for count in counts), "rules": asdict(rules)}


def _anchor(row: Row) -> str:
    return f"{row['instruction']}{BREAK}{row['query']}"


def _pair(row: Row) -> tuple[str, str]:
    return _anchor(row), row["positive"]


def _search(rows: Sequence[Row], encoder: Encoder, rules: Rules, corpus: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """Negatives, closest first, by query and positive."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    from speedlit.evaluation.run import quiet

    documents = list(dict.fromkeys([*corpus, *(row["positive"] for row in rows)]))
    pairs = list(dict.fromkeys(_pair(row) for row in rows))
    most = max(np.unique([anchor for anchor, _ in pairs], return_counts=True)[1])
    if len(documents) <= most:  # nothing but positives
        return {}
    table = Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [p for _, p in pairs]})
    searcher: Any = Asked(encoder)
    with quiet(), _no_bars():
        mined = mine_hard_negatives(
            table, searcher, anchor_column_name="anchor", positive_column_name="positive", corpus=documents, range_min=rules.skip,
            range_max=min(rules.among, len(documents) - 1), max_score=rules.ceiling, relative_margin=rules.margin,
            num_negatives=min(rules.negatives, len(documents) - 1), output_format="triplet", verbose=False,
        )  # fmt: skip
    negatives: dict[tuple[str, str], list[str]] = defaultdict(list)
    for anchor, positive, negative in zip(mined["anchor"], mined["positive"], mined["negative"], strict=True):
        negatives[anchor, positive].append(negative)
    return negatives


def _no_bars() -> Any:
    """sentence-transformers shows its bars whatever it is told."""
    from contextlib import redirect_stderr
    from io import StringIO

    return redirect_stderr(StringIO())


def _joined(row: Row, mined: Sequence[str], rules: Rules) -> Row:
    """The row with what was mined; one for which nothing was found keeps its own negatives, so that none loses all."""
    taken = set(mined) - {row["positive"], row["query"]}
    fresh = [text for text in mined if text in taken]
    if not fresh:
        return dict(row)
    kept = [] if rules.replace else list(row["negatives"])
    plain = {key: value for key, value in row.items() if key not in ("scores", "labels")}
    return {**plain, "negatives": list(dict.fromkeys([*kept, *fresh]))}


class Asked:
    """Our encoder as sentence-transformers' search asks one."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.device = encoder, "cpu"

    def encode_document(self, texts: Sequence[str], **_: Any) -> np.ndarray:
        """Vectors of bare texts, of length 1."""
        return _unit(self.encoder.vectors(list(texts)))

    def encode_query(self, anchors: Sequence[str], **_: Any) -> np.ndarray:
        """Vectors of queries under the instructions in front of them, of length 1."""
        groups: dict[str, list[int]] = defaultdict(list)
        for number, anchor in enumerate(anchors):
            groups[anchor.partition(BREAK)[0]].append(number)
        found: dict[int, np.ndarray] = {}
        for instruction, members in groups.items():
            texts = [anchors[i].partition(BREAK)[2] for i in members]
            found.update(zip(members, self.encoder.vectors(texts, instruction or None), strict=True))
        return _unit(np.stack([found[i] for i in range(len(anchors))]))

    def similarity(self, a: Any, b: Any) -> torch.Tensor:
        """Cosine of every row of the one with every row of the other."""
        import torch

        return torch.as_tensor(a) @ torch.as_tensor(b).T

    def similarity_pairwise(self, a: Any, b: Any) -> torch.Tensor:
        """Cosine of the rows of the same number."""
        import torch

        return (torch.as_tensor(a) * torch.as_tensor(b)).sum(1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    found: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return found


def texts_of(rows: Iterable[Row]) -> list[str]:
    """The documents of a corpus file: ``text`` of each row, behind its ``title`` if it has one.

    Raises:
        UsageError: a row without text.
    """
    texts = []
    for number, row in enumerate(rows):
        if not isinstance(row.get("text"), str) or not row["text"]:
            raise UsageError(f"row {number} of the corpus has no text; it has {', '.join(map(str, row)) or 'nothing'}")
        texts.append(f"{row['title']} {row['text']}" if row.get("title") else row["text"])
    return texts
