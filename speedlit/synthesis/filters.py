"""What a data set leaves out: exact copies, near-duplicates by MinHash, and texts that share a long run of words with evaluation texts.

All three stream: they keep hashes, not texts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from speedlit.errors import UsageError

WORD = re.compile(r"\w+", re.UNICODE)
PERMUTATIONS, BANDS = 128, 32


def words(text: str) -> list[str]:
    """Casefolded words without punctuation."""
    return WORD.findall(text.casefold())


def shingles(tokens: list[str], size: int) -> set[str]:
    """All runs of ``size`` words; a shorter text is one shingle as a whole."""
    if len(tokens) <= size:
        return {" ".join(tokens)}
    return {" ".join(tokens[i : i + size]) for i in range(len(tokens) - size + 1)}


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class ExactFilter:
    """Remembers normalised texts by hash."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def is_duplicate(self, text: str) -> bool:
        """Whether an equal text (case, blanks and punctuation aside) was seen before; remembers it."""
        value = _hash(" ".join(words(text)))
        if value in self._seen:
            return True
        self._seen.add(value)
        return False


class NearFilter:
    """Near-duplicates by MinHash over word shingles (SPEED names MinHash and no settings; these are ours: 5 words, 128 permutations, 0.8).

    Args:
        threshold: Jaccard similarity of the shingle sets from which two texts count as near-duplicates.
        size: words in a shingle.
    """

    def __init__(self, threshold: float = 0.8, size: int = 5, seed: int = 0) -> None:
        from rensa import RMinHash, RMinHashDeduplicator

        if not 0 < threshold <= 1:
            raise UsageError(f"filters.minhash_threshold must lie between 0 and 1, not {threshold}; null switches the filter off")
        self._size, self._seed, self._new = size, seed, RMinHash
        self._store = RMinHashDeduplicator(threshold=threshold, num_perm=PERMUTATIONS, use_lsh=True, num_bands=BANDS, seed=seed)
        self._count = 0

    def is_duplicate(self, text: str) -> bool:
        """Whether a similar text was seen before; remembers it if not."""
        sketch = self._new(num_perm=PERMUTATIONS, seed=self._seed)
        sketch.update(sorted(shingles(words(text), self._size)))
        self._count += 1
        return not self._store.add(str(self._count), sketch)


class ContaminationFilter:
    """Texts that share a run of ``size`` words with a protected text, or equal a shorter one as a whole.

    Args:
        protected: texts of the evaluation tasks.
        size: words in a run (13 is the usual length).
    """

    def __init__(self, protected: Iterable[str], size: int = 13) -> None:
        self._size = size
        self._runs: set[int] = set()
        self.texts = 0
        for text in protected:
            tokens = words(text)
            if tokens:
                self.texts += 1
                self._runs.update(_hash(run) for run in shingles(tokens, size))

    def is_contaminated(self, *texts: str) -> bool:
        """Whether one of ``texts`` overlaps with a protected one."""
        return any(_hash(run) in self._runs for text in texts for run in shingles(words(text), self._size))


def texts_in(path: Path) -> Iterator[str]:
    """Yield every text of the evaluation files under ``path`` (.jsonl, .json, .txt, .tsv, .csv); JSON gives all its strings but ids.

    Raises:
        UsageError: missing or unreadable file.
    """
    if not path.exists():
        raise UsageError(f"evaluation texts to keep out of the data: {path} does not exist")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if file.suffix not in (".jsonl", ".json", ".txt", ".tsv", ".csv"):
            continue
        try:
            content = file.read_text(encoding="utf-8")
            if file.suffix == ".json":
                yield from strings(json.loads(content))
            elif file.suffix == ".jsonl":
                for line in content.splitlines():
                    if line.strip():
                        yield from strings(json.loads(line))
            else:
                for line in content.splitlines():
                    yield from line.split("\t") if file.suffix == ".tsv" else [line]
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read the evaluation texts in {file}: {error}") from error


def strings(value: Any) -> Iterator[str]:
    """Yield the strings inside a JSON value; values of keys that name ids are passed over."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in ("id", "_id", "query-id", "corpus-id"):
                yield from strings(item)
