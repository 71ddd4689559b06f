"""Trivial baselines: a scorer that only counts lengths, or only matches words, must not solve (query, positive, negative)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from speedlit.records import Record
from speedlit.synthesis.filters import words
from speedlit.synthesis.quality.alarms import Figure
from speedlit.synthesis.quality.lexical import BM25, LONGEST

ENOUGH = 200  # pairs from which a kind is looked at by itself
SEARCHED = 300  # queries that are searched among all their documents
QUERY = 40  # words; longer texts are no queries

Pairs = dict[str, list[tuple[float, float]]]  # kind -> scores of positive and negative


def share(hits: Sequence[bool]) -> Figure | None:
    """Mean of hits, or None where there is nothing to look at."""
    return Figure(sum(hits) / len(hits), len(hits)) if hits else None


def auc(pairs: Sequence[tuple[float, float]]) -> Figure | None:
    """Share of pairs whose first number is larger, ties half."""
    return Figure(sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs), len(pairs)) if pairs else None


def worst(pairs: Pairs) -> Figure | None:
    """AUC of the kind that lies most surely away from 0.5: over all kinds together, opposite faults would cancel out."""
    whole = [pair for rows in pairs.values() for pair in rows]
    figures = [auc(rows) for rows in pairs.values() if len(rows) >= ENOUGH] or [auc(whole)]
    return max((f for f in figures if f is not None), key=sureness, default=None)


def sureness(figure: Figure) -> float:
    """How far the interval stays away from 0.5; negative where it holds 0.5."""
    low, high = figure.interval
    return max(low - 0.5, 0.5 - high)


def length_auc(records: Sequence[Record]) -> Figure | None:
    """How often the positive is longer than the negative, ties half: far from 0.5, length alone tells them apart."""
    pairs: Pairs = defaultdict(list)
    for record in records:
        pairs[record.kind] += [(len(words(record.positive)), len(words(negative))) for negative in record.negatives]
    return worst(pairs)


def bm25_auc(records: Sequence[Record]) -> Figure | None:
    """How often BM25 prefers the positive to the negative, ties half: near 1, matching words would do. Labels have nothing to match."""
    rows = [record for record in records if record.negatives and record.kind != "classification"]
    documents = [words(text)[:LONGEST] for record in rows for text in (record.positive, *record.negatives)]
    found, at = BM25(documents), 0
    pairs: Pairs = defaultdict(list)
    for record in rows:
        query = words(record.query)
        scores = [found.score(query, at + i) for i in range(1 + len(record.negatives))]
        at += len(scores)
        pairs[record.kind] += [(scores[0], score) for score in scores[1:]]
    return worst(pairs)


def own_positive_first(records: Sequence[Record]) -> Figure | None:
    """Share of queries whose positive BM25 ranks first among the positives and negatives of all of them; ties share the place."""
    rows = [r for r in records if r.kind != "classification" and r.negatives and len(words(r.query)) <= QUERY][:SEARCHED]
    documents: list[list[str]] = []
    own: list[int] = []
    for record in rows:
        own.append(len(documents))
        documents += [words(text)[:LONGEST] for text in (record.positive, *record.negatives)]
    found, hits = BM25(documents), []
    for record, mine in zip(rows, own, strict=True):
        scores = found.scores(words(record.query))
        hits.append(1 / int((scores == scores[mine]).sum()) if scores[mine] == scores.max() > 0 else 0.0)
    return Figure(sum(hits) / len(hits), len(hits)) if hits else None
