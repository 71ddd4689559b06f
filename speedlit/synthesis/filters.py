"""What a data set must not hold: texts that share a long run of words with evaluation texts; and reading those.

Exact copies and near-duplicates: ``hashing.py`` and ``near.py``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speedlit.errors import UsageError
from speedlit.synthesis.hashing import Hashes, Places, encode, runs, words
from speedlit.synthesis.near import NearFilter

__all__ = ["ContaminationFilter", "NearFilter", "strings", "texts_in", "words"]
NO_TEXTS = {"id", "_id", "query-id", "corpus-id", "label", "labels", "label_text"}  # two data sets may well have a label in common
BLOCK = 1000  # texts that are hashed together


class ContaminationFilter:
    """Texts that share a run of ``size`` words with a protected text, or equal a shorter one as a whole.

    Args:
        protected: texts of the evaluation tasks.
        size: words in a run (13 is the usual length).
    """

    def __init__(self, protected: Iterable[str] = (), size: int = 13) -> None:
        self.size, self.texts = size, 0
        found = [np.zeros(0, np.uint64)]
        source = iter(protected)
        while block := list(itertools.islice(source, BLOCK)):
            tokens, bounds = encode(block)
            worded = np.flatnonzero(np.diff(bounds))
            self.texts += len(worded)
            found.append(np.unique(runs(tokens, bounds[:-1][worded], bounds[1:][worded], size)[0]))
        self._take(np.unique(np.concatenate(found)))

    @classmethod
    def load(cls, path: Path, size: int) -> ContaminationFilter:
        """The filter that ``save`` wrote."""
        made = cls(size=size)
        made._take(np.load(path, mmap_mode="r"))
        return made

    def save(self, path: Path) -> None:
        """Keep the runs in a file, for other processes."""
        np.save(path, self._runs)

    def _take(self, found: Hashes) -> None:
        """Sorted hashes of runs, and a table of their leading bits that answers most questions with no."""
        self._runs = found
        bits = min(max(4 + len(found).bit_length(), 16), 27)
        self._shift = np.uint64(64 - bits)
        self._leading = np.zeros(1 << bits, bool)
        self._leading[found >> self._shift] = True

    def hits(self, tokens: Hashes, starts: Places, ends: Places) -> NDArray[np.bool_]:
        """Which of some stretches of words overlap with a protected text."""
        found = np.zeros(len(starts), bool)
        worded = np.flatnonzero(ends > starts)
        hashes, bounds = runs(tokens, starts[worded], ends[worded], self.size)
        likely = np.flatnonzero(self._leading[hashes >> self._shift])
        place = np.searchsorted(self._runs, hashes[likely])
        sure = likely[self._runs[np.minimum(place, len(self._runs) - 1)] == hashes[likely]] if len(self._runs) else likely
        found[worded[np.searchsorted(bounds, sure, side="right") - 1]] = True
        return found

    def is_contaminated(self, *texts: str) -> bool:
        """Whether one of ``texts`` overlaps with a protected one."""
        tokens, bounds = encode(texts)
        return bool(self.hits(tokens, bounds[:-1], bounds[1:]).any())


def texts_in(path: Path) -> Iterator[str]:
    """Yield every text of the evaluation files under ``path`` (.jsonl, .json, .txt, .tsv, .csv); JSON gives all its strings but ids and
    labels.

    Raises:
        UsageError: missing or unreadable file.
    """
    if not path.exists():
        raise UsageError(f"evaluation texts to keep out of the data: {path} does not exist; mend evaluation.data")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if file.suffix not in (".jsonl", ".json", ".txt", ".tsv", ".csv"):
            continue
        try:
            with file.open(encoding="utf-8") as stream:
                if file.suffix == ".json":
                    yield from strings(json.load(stream))
                    continue
                for line in stream:
                    if file.suffix == ".jsonl":
                        yield from strings(json.loads(line)) if line.strip() else ()
                    else:
                        yield from line.split("\t") if file.suffix == ".tsv" else [line]
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read the evaluation texts in {file}: {error}; mend the file, or evaluation.data") from error


def strings(value: Any) -> Iterator[str]:
    """Yield the strings inside a JSON value; values of keys that name ids or labels are passed over."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in NO_TEXTS:
                yield from strings(item)
