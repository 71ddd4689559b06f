"""The paper's prompts as a table: kinds, JSON keys, knobs with values and weights, lines that are drawn, order, judge and critique."""

from __future__ import annotations

from typing import Any

import pytest

from speedlit.synthesis.templates import load_set

CLARITY = (["clear", "understandable with some effort", "ambiguous"], [0.6, 0.2, 0.2])
ADULT = ["high school", "college", "PhD"]
KINDS: dict[str, dict[str, Any]] = {
    "retrieval": {
        "fields": {"user_query": "query", "positive_document": "positive", "hard_negative_document": "negative"},
        "knobs": {
            "num_words": ([50, 100, 200, 300, 400, 500], None),
            "query_length": (["fewer than 5 words", "5 to 15 words", "at least 10 words"], [0.4, 0.4, 0.2]),
            "clarity": CLARITY,
            "query_type": (["extremely long-tail", "long-tail", "common"], [0.4, 0.5, 0.1]),
            "education": (ADULT, None, 0.5),
        },
        "lines": [1, 1, 1, 1, 1, 1],
        "shuffle": True,
        "input": "task",
    },
    "classification": {
        "fields": {"input_text": "query", "label": "positive", "misleading_label": "negative"},
        "knobs": {
            "num_words": (["fewer than 10", "at least 10", "at least 50", "at least 100", "at least 200"], [0.1, 0.3, 0.2, 0.2, 0.2]),
            "clarity": CLARITY,
            "education": (ADULT, None),
        },
        "lines": [1, 1, 1, 1, 0.5],  # clarity and education share the line that is drawn
        "shuffle": True,
        "input": "task",
    },
    "sts": {
        "fields": {"S1": "query", "S2": "positive", "S3": "negative"},
        "knobs": {
            "unit": (["sentence", "phrase", "passage"], [0.9, 0.05, 0.05]),
            "high": (["4", "4.5", "5"], None),
            "low": (["2.5", "3", "3.5"], None),
            "education": (["elementary school", "high school", "college"], None, 0.5),
        },
        "lines": [1, 1, 1, 1],
        "shuffle": False,
        "input": "topic",
    },
    "s2s": {"fields": {"input": "query", "positive_document": "positive"}, "knobs": {}, "lines": [1, 1, 1], "shuffle": False, "input": "task"},
    "p2p": {"fields": {"input": "query", "positive_document": "positive"}, "knobs": {}, "lines": [1, 1, 1], "shuffle": False, "input": "task"},
}


def test_there_are_five_kinds_in_the_planned_shares() -> None:
    prompts = load_set("paper")
    assert set(prompts) == set(KINDS)
    assert {kind: prompts[kind].share for kind in prompts} == {"classification": 7, "retrieval": 7, "sts": 7, "s2s": 1, "p2p": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_keys_knobs_weights_and_order(kind: str) -> None:
    template, paper = load_set("paper")[kind], KINDS[kind]
    assert dict(template.fields) == paper["fields"] and list(template.fields) == list(paper["fields"])
    knobs = {"language": (["English"], None), **paper["knobs"]}
    assert set(template.knobs) == set(knobs)
    for name, (values, weights, *probability) in knobs.items():
        knob = template.knobs[name]
        assert list(knob.values) == values, name
        assert (knob.weights and list(knob.weights)) == weights, name
        assert knob.probability == (probability[0] if probability else 1.0), name
    assert [line.probability for line in template.lines] == paper["lines"]
    assert template.shuffle is paper["shuffle"] and template.input == paper["input"]


def test_clarity_and_education_of_classification_share_one_line() -> None:
    lines = load_set("paper")["classification"].lines
    assert [("{clarity}" in line.text, "{education}" in line.text) for line in lines] == [(False, False)] * 4 + [(True, True)]


def test_lengths_of_the_matching_kinds_and_the_fixed_instruction() -> None:
    prompts = load_set("paper")
    assert "very short" in prompts["s2s"].lines[0].text and "at least 300 words" in prompts["p2p"].lines[0].text
    assert prompts["sts"].instruction == "Retrieve semantically similar text" and "{task}" not in prompts["sts"].text
    assert all("{topic}" not in prompts[kind].text for kind in ("retrieval", "classification", "s2s", "p2p"))


def test_brainstorming_asks_for_five_with_the_papers_numbers_of_examples() -> None:
    role = load_set("paper").roles["brainstorm"]
    assert "about 5" in role.text and "JSON list of strings" in role.text
    assert {kind: (len(spec["examples"]), spec["shuffle"]) for kind, spec in role.kinds.items()} == {
        "retrieval": (7, True), "classification": (7, True), "s2s": (3, False), "p2p": (2, False),
    }  # fmt: skip
    for word in ("sentiment", "subject", "field of study", "genre", "main topic", "spam", "urgency", "language"):
        assert word in role.kinds["classification"]["rule"]


@pytest.mark.parametrize("name", ["paper", "mini"])
def test_judge_and_critique_say_what_they_are_asked_for(name: str) -> None:
    roles = load_set(name).roles
    text = roles["judge"].judge("order", ["a", "b", "c"])[-1]["content"]
    assert all(f'"{key}"' in text for key in ("reason", "best", "worst")) and "0 to 2" in text
    for form, key in (("full", "revision"), ("edits", "edits")):
        critique = roles["critique"].revision("order", "{}", form)[-1]["content"]
        assert f'"{key}"' in critique and '"reason"' in critique
        assert all(word in critique.lower() for word in ("relevance", "completeness", "accuracy"))
