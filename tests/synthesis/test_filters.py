"""Filters: copies and contaminated texts are found, others are left alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from speedlit.errors import UsageError
from speedlit.synthesis.filters import ContaminationFilter, NearFilter, texts_in
from speedlit.synthesis.hashing import encode, whole

HEADS, TAILS = ("ka", "lo", "mi", "ne", "pu", "ra", "so", "ti", "vu", "ze"), ("ba", "dor", "fen", "gil", "hum", "jax", "kes", "lun", "mar", "nop")
WORDS = [head + tail for head in HEADS for tail in TAILS]


def text(rng: random.Random, low: int = 12, high: int = 30) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))


def test_exact_copies_but_for_case_and_punctuation() -> None:
    tokens, bounds = encode(["A red house.", "a  red, HOUSE", "a red horse", "house red a", "", "a red", "house"])
    hashes = whole(tokens, bounds[:-1], bounds[1:]).tolist()
    assert hashes[0] == hashes[1] and len(set(hashes)) == len(hashes) - 1


def test_near_duplicates_are_found_and_others_kept() -> None:
    rng = random.Random(1)
    originals = [text(rng, 60, 80) for _ in range(400)]
    copies = []
    for original in originals[:200]:
        tokens = original.split()
        tokens[len(tokens) // 2] = "other"  # five of about 65 shingles differ on either side: Jaccard about 0.86
        copies.append(" ".join(tokens))
    near = NearFilter(0.8)
    assert sum(near.is_duplicate(t) for t in originals) == 0
    found = sum(near.is_duplicate(t) for t in copies)
    assert found >= 180
    with pytest.raises(UsageError, match="minhash_threshold"):
        NearFilter(1.5)


def test_contamination_by_runs_of_words(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "corpus.jsonl").write_text('{"_id": "secret id words", "text": "one two three four five six seven"}\n')
    (tmp_path / "task" / "labels.json").write_text('{"names": ["short label"]}')
    (tmp_path / "task" / "test.jsonl").write_text('{"text": "", "label": "joy", "labels": ["deep joy"]}\n')
    found = ContaminationFilter(texts_in(tmp_path), size=5)
    assert found.texts == 2
    assert found.is_contaminated("x", "he said: TWO three, four five six - and left")
    assert not found.is_contaminated("two three four five", "secret id words")
    assert not found.is_contaminated("joy", "deep joy"), "a label is no text"
    assert found.is_contaminated("Short label!") and not found.is_contaminated("a short label")
    with pytest.raises(UsageError, match="does not exist"):
        list(texts_in(tmp_path / "nothing"))
