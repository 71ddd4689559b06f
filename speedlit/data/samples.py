"""Samples by index over one or more shard sets, made into ids when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from speedlit.data import collate
from speedlit.data.shards import ShardSet
from speedlit.data.tokens import TokenContract
from speedlit.files import content_id

Encode = Callable[[Any, TokenContract, list[dict[str, Any]]], list[collate.Sample]]


class Samples:
    """The samples of one or more shard sets, by index: encoded when they are asked for, and what the plan knows of each before that.

    Attributes:
        widths: characters per sample, a measure of its work.
        documents: of contrastive samples, the positive counted; else None.
        kinds: task kind per sample as a number, or None.
        starts: where each set begins, and how many samples there are.
        chunks: likewise of the chunks; None where all sets are kept in memory.
    """

    def __init__(self, sets: list[ShardSet], encode: Encode, tokenizer: Any, tokens: TokenContract) -> None:
        self.sets, self.encode, self.tokenizer, self.tokens = sets, encode, tokenizer, tokens
        self.starts = np.cumsum([0, *map(len, sets)])
        self.small = all(found.small for found in sets)
        self.chunks = None if self.small else np.unique(np.concatenate([s.starts + start for s, start in zip(sets, self.starts, strict=False)]))
        self._kept: dict[int, collate.Sample] = {}
        tables = [found.table() for found in sets]
        self.widths = np.concatenate([sum(column.astype(np.int64) for name, column in t.items() if name not in ("documents", "kind")) for t in tables])
        contrastive = sets[0].shape == "contrastive"
        self.documents = np.concatenate([table["documents"] for table in tables]) if contrastive else None
        self.kinds = np.concatenate([_kind_numbers(s)[table["kind"]] for s, table in zip(sets, tables, strict=True)]) if contrastive else None

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, places: np.ndarray) -> list[collate.Sample]:
        """The samples at ``places``, in their order; those of small sets are encoded once."""
        missing = np.asarray([place for place in np.unique(places).tolist() if place not in self._kept], dtype=np.int64)
        rows = [row for number, found in enumerate(self.sets) for row in found.take(self._of(number, missing))]
        made = dict(zip(missing.tolist(), self.encode(self.tokenizer, self.tokens, rows), strict=True)) if rows else {}
        if self.small:
            self._kept.update({place: _compact(sample) for place, sample in made.items()})
            made = self._kept
        return [made[place] for place in places.tolist()]

    def _of(self, number: int, places: np.ndarray) -> np.ndarray:
        """Which of the ascending ``places`` lie in a set, counted from its beginning."""
        first, last = np.searchsorted(places, self.starts[number : number + 2])
        found: np.ndarray = places[first:last] - self.starts[number]
        return found

    def tables(self, name: str) -> list[Path]:
        """Per shard set, the file of a table about its samples as they are now: rows, token contract and tokenizer."""
        tokenizer = self.tokenizer.backend_tokenizer.to_str() if getattr(self.tokenizer, "is_fast", False) else repr(self.tokenizer)
        read = [self.tokens.to_json(), tokenizer]
        return [s.path / f"{name}-{content_id([[c['sha256'] for c in s.manifest.chunks], read])}.npz" for s in self.sets]


def _kind_numbers(found: ShardSet) -> np.ndarray:
    """A number for each task kind of a set, the same in every set."""
    return np.asarray([collate.text_hash(kind) & 0x7FFFFFFF for kind in sorted(found.manifest.kinds)], dtype=np.int64)


def _compact(value: Any) -> Any:
    """Lists of ids as arrays: a seventh of the memory."""
    if isinstance(value, dict):
        return {key: item if key == "texts" else _compact(item) for key, item in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], int):
        return np.asarray(value, dtype=np.int32)
    if isinstance(value, (list, tuple)):
        return [_compact(item) for item in value]
    return value
