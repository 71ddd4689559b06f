"""Filters and measures: planted faults are found, clean data are left alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from speedlit.errors import UsageError
from speedlit.records import Record
from speedlit.synthesis.filters import ContaminationFilter, ExactFilter, NearFilter, texts_in
from speedlit.synthesis.quality import longest_run, measure

HEADS, TAILS = ("ka", "lo", "mi", "ne", "pu", "ra", "so", "ti", "vu", "ze"), ("ba", "dor", "fen", "gil", "hum", "jax", "kes", "lun", "mar", "nop")
WORDS = [head + tail for head in HEADS for tail in TAILS]


def text(rng: random.Random, low: int = 12, high: int = 30) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))


def records(count: int, seed: int = 0) -> list[Record]:
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        query, positive, negative = text(rng, 5, 9), text(rng), text(rng)
        if i % 2:
            positive, negative = rng.choice(WORDS[:50]), rng.choice(WORDS[50:])
            query = " ".join(word for word in text(rng).split() if word not in (positive, negative)) + " end"
        kind = "classification" if i % 2 else "retrieval"
        rows.append(Record(f"g{i}", f"p{i}", kind, "do", {"a": query, "b": positive, "c": negative}, query, positive, [negative]))
    return rows


def test_exact_copies_but_for_case_and_punctuation() -> None:
    exact = ExactFilter()
    assert [exact.is_duplicate(t) for t in ("A red house.", "a  red, HOUSE", "a red horse")] == [False, True, False]


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
    found = ContaminationFilter(texts_in(tmp_path), size=5)
    assert found.texts == 2
    assert found.is_contaminated("x", "he said: TWO three, four five six - and left")
    assert not found.is_contaminated("two three four five", "secret id words")
    assert found.is_contaminated("Short label!") and not found.is_contaminated("a short label")
    with pytest.raises(UsageError, match="does not exist"):
        list(texts_in(tmp_path / "nothing"))


def test_clean_records_raise_no_alarm() -> None:
    found = measure(records(400))
    assert found["alarms"] == [], found


def plant(rows: list[Record], kind: str, **over: object) -> list[Record]:
    from dataclasses import replace

    planted = 0
    for i, row in enumerate(rows):
        if row.kind == kind and planted < len(rows) // 20:
            rows[i] = replace(row, **{name: value(row) if callable(value) else value for name, value in over.items()})
            planted += 1
    return rows


PLANTED = {
    "label_leak": ("classification", {"query": lambda r: f"{r.query} {r.positive.upper()}, she said"}),
    "negative_like_positive": ("retrieval", {"negatives": lambda r: [r.positive + " more"]}),
    "copied_query": ("retrieval", {"positive": lambda r: f"so {r.query} it is"}),
    "duplicates": ("retrieval", {"fields": {"a": "the same"}}),
    "meta_text": ("retrieval", {"fields": lambda r: {**r.fields, "b": r.positive + " [/INST]"}}),
    "repaired": ("retrieval", {"parsed_by": "repaired"}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_raises_its_alarm(name: str) -> None:
    kind, over = PLANTED[name]
    rows = plant(records(400), kind, **over)
    if name == "repaired":
        rows = plant(rows[::-1], "retrieval", **over)
    assert name in measure(rows)["alarms"]


def test_lengths_that_give_the_positive_away_raise_an_alarm() -> None:
    from dataclasses import replace

    rows = [replace(row, positive=row.positive + " and on and on", negatives=["no"]) for row in records(100)]
    assert "length_auc" in measure(rows)["alarms"]


def test_no_records_no_figures() -> None:
    assert measure([]) == {"records": 0, "alarms": []}


def test_longest_run() -> None:
    assert longest_run(list("abcd"), list("xbcycd")) == 2
