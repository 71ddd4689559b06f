"""Measures of synthetic data: planted faults are alarmed, clean data raise nothing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from speedlit.records import Record
from speedlit.synthesis.quality import Measures, fault_of, measure

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


def test_clean_records_raise_no_alarm() -> None:
    found = measure(records(400))
    assert found["alarms"] == [], found


def plant(rows: list[Record], kind: str, **over: object) -> list[Record]:
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
    rows = [replace(row, positive=row.positive + " and on and on", negatives=["no"]) for row in records(100)]
    assert "length_auc" in measure(rows)["alarms"]


def test_no_records_no_figures() -> None:
    assert measure([]) == {"records": 0, "alarms": []}


def test_the_sample_is_bounded_and_the_share_of_copies_exact_in_the_mean() -> None:
    rows = records(1500)
    rows += rows[:150]
    whole, small = Measures(), Measures(sample=500)
    for row in rows:
        whole.add(row)
    for row in random.Random(1).sample(rows, len(rows)):
        small.add(row)
    found = small.result()
    assert whole.result()["duplicates"] == round(150 / 1650, 4)
    assert found["records"] == 1650 and found["duplicates"] == pytest.approx(150 / 1650, abs=0.04) and found["alarms"] == ["duplicates"]
    again = Measures(sample=500)
    for row in rows:
        again.add(row)
    assert again.result() == found, "the figures do not depend on the order"


GATED = {
    "meta_text": (True, "positive", "I'm sorry, but I cannot help with that request."),
    "label_leak": (True, "query", "so it is kaba, all told"),
    "negative_like_positive": (0.8, "negatives", ["one two three four five six seven eight nine ten and eleven"]),
    "copied_query": (0.5, "positive", "they say: do wide rivers freeze last? in the north where it is cold"),
}


@pytest.mark.parametrize("gate", GATED)
def test_a_gate_drops_what_its_measure_counts(gate: str) -> None:
    limit, name, value = GATED[gate]
    kind = "classification" if gate == "label_leak" else "retrieval"
    positive = "kaba" if kind == "classification" else "one two three four five six seven eight nine ten eleven"
    clean = Record("g", "p", kind, "do", {"q": "do wide rivers freeze last"}, "do wide rivers freeze last", positive, ["lodor"])
    spoilt = replace(clean, **{name: value})
    spoilt = replace(spoilt, fields={"q": spoilt.query, "p": spoilt.positive})
    assert fault_of(clean, {gate: limit}) == ""
    assert fault_of(spoilt, {gate: limit}) == gate
    assert fault_of(spoilt, {}) == fault_of(spoilt, {gate: None}) == "", "gates are open unless the config closes them"


def test_a_negative_that_is_the_positive_never_passes() -> None:
    row = records(1)[0]
    assert fault_of(replace(row, negatives=[row.positive]), {}) == "negative_equals_positive"
