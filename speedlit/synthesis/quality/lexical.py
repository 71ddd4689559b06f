"""Similarity by words: hashed TF-IDF and BM25.

No model is asked: the alarms have to work before there is one, at every stage, offline, in a second, and without torch. They look for
gross faults (another topic, a copied text), which words show well enough.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from speedlit.synthesis.filters import words

COLUMNS = 4096
LONGEST = 200  # words of a text that are looked at
K1, B = 1.2, 0.75  # the usual constants of BM25


@lru_cache(maxsize=100_000)
def pieces(word: str) -> tuple[int, ...]:
    """Columns of a word and of its beginning, which ``sailing`` and ``sailors`` have in common."""
    return tuple(zlib.crc32(piece.encode()) % COLUMNS for piece in {word, word[:4] + "-"})


def hashed(texts: Sequence[str]) -> np.ndarray[Any, Any]:
    """One row of length 1 per text: hashed TF-IDF over words and their beginnings, the weights from ``texts`` themselves."""
    rows = np.zeros((len(texts), COLUMNS), np.float32)
    for row, text in zip(rows, texts, strict=True):
        columns = [column for word in words(text)[:LONGEST] for column in pieces(word)]
        found = Counter(columns)
        row[list(found)] = 1 + np.log(np.fromiter(found.values(), np.float32))
    rows *= np.log((1 + len(texts)) / (1 + (rows > 0).sum(0)))
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return rows


class BM25:
    """How well documents match a query by their words alone.

    Args:
        documents: tokenised texts, from which the weights of the words come.
    """

    def __init__(self, documents: Sequence[Sequence[str]]) -> None:
        self._counts = [Counter(document) for document in documents]
        self._cache: dict[str, tuple[list[int], list[float]]] = {}
        self._lengths = [len(document) for document in documents]
        self._mean = max(sum(self._lengths) / max(len(documents), 1), 1.0)
        holds = Counter(word for counts in self._counts for word in counts)
        self._weight = {word: math.log(1 + (len(documents) - n + 0.5) / (n + 0.5)) for word, n in holds.items()}

    def score(self, query: Sequence[str], document: int) -> float:
        """Score of the numbered document."""
        counts = self._counts[document]
        return sum(self._part(word, document) for word in sorted(set(query)) if word in counts)

    def scores(self, query: Sequence[str]) -> np.ndarray[Any, Any]:
        """Scores of all documents."""
        out = np.zeros(len(self._counts))
        for word in sorted(set(query)):  # one order of adding, so that equal documents have equal scores
            places, parts = self._postings(word)
            out[places] += parts
        return out

    def _part(self, word: str, document: int) -> float:
        n = self._counts[document][word]
        return self._weight[word] * n * (K1 + 1) / (n + K1 * (1 - B + B * self._lengths[document] / self._mean))

    def _postings(self, word: str) -> tuple[list[int], list[float]]:
        if word not in self._cache:
            places = [i for i, counts in enumerate(self._counts) if word in counts]
            self._cache[word] = places, [self._part(word, i) for i in places]
        return self._cache[word]
