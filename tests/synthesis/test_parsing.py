"""Reading model output: what is mended, what is refused and why, and that content is never touched."""

from __future__ import annotations

import pytest

from speedlit.synthesis.parsing import Rejected, apply_edits, dumps, parse_brainstorm, parse_change, parse_judge, parse_record

KEYS = ["user_query", "positive_document", "hard_negative_document"]
FIELDS = {"user_query": "why's the sky {blue}?", "positive_document": 'She said "so"\nand left.', "hard_negative_document": "größer"}
GOOD = dumps(FIELDS, KEYS)


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"Sure! Here it is:\n```json\n{GOOD}\n```\nAnything else?",
        f"[{GOOD}]",
        f"The set {{1, 2}} aside: {GOOD}",
        GOOD.replace("\\n", "\n"),  # a raw line break inside a string
        GOOD[:-1] + ', "explanation": "because", "score": 3}',
    ],
)
def test_strict(text: str) -> None:
    parsed = parse_record(text, KEYS)
    assert parsed.fields == FIELDS and list(parsed.fields) == KEYS and parsed.parsed_by == "strict"


@pytest.mark.parametrize("text", [GOOD[:-1], GOOD.replace('": "', '" "', 1), GOOD.replace('", "p', '" "p')])
def test_repaired(text: str) -> None:
    parsed = parse_record(text, KEYS)
    assert set(parsed.fields) == set(KEYS) and parsed.parsed_by == "repaired"


@pytest.mark.parametrize(
    ("text", "finish_reason", "reason"),
    [
        ("", "stop", "empty"),
        ("  \n", "length", "truncated"),
        (GOOD[:60], "length", "truncated"),
        ("I'm sorry, but I can't help with that.", "stop", "refusal"),
        ("I can’t do this", "stop", "refusal"),
        ("here is a query about the sky", "stop", "not_json"),
        ("{" * 300, "stop", "not_json"),
        ("[1, 2]", "stop", "not_json"),
        ('{"user_query": "a", "positive_document": "b"}', "stop", "missing_key:hard_negative_document"),
        ('{"user_query": "a", "positive_document": 5, "hard_negative_document": "c"}', "stop", "wrong_type:positive_document"),
        ('{"user_query": "a", "positive_document": " ", "hard_negative_document": "c"}', "stop", "empty_field:positive_document"),
        ("__import__('os').system('true')", "stop", "not_json"),
    ],
)
def test_refused_with_a_reason(text: str, finish_reason: str, reason: str) -> None:
    with pytest.raises(Rejected, match=f"^{reason}$"):
        parse_record(text, KEYS, finish_reason)


def test_an_object_without_the_keys_is_passed_over_for_one_that_has_them() -> None:
    assert parse_record('A draft: {"idea": "sky"}. The answer:\n' + GOOD, KEYS).fields == FIELDS
    assert parse_judge('{"weights": {"form": 1}} so {"reason": "r", "best": 1, "worst": 0}', 2).best == 1
    damaged = '{"reason": "x" "revision": {"S1": "a", "S2": "b"}}'  # a comma is missing outside the whole object
    assert parse_change(damaged, BEFORE, ["S1", "S2"], "full").after == {"S1": "a", "S2": "b"}
    with pytest.raises(Rejected, match="^missing_key:user_query$"):
        parse_record('{"idea": "sky"}', KEYS)


def test_a_whole_value_inside_a_cut_answer_is_not_the_answer() -> None:
    cut = '{"reason": "r", "revision": {"S1": "a", "S2": "b"}, "not'
    for text in (cut, cut[:-5], '{"reason": "r", "edits": [["S1", "a", "b"], ["S2"'):
        with pytest.raises(Rejected, match="^truncated$"):
            parse_change(text, BEFORE, ["S1", "S2"], "full", "length")
    with pytest.raises(Rejected, match="^truncated$"):
        parse_brainstorm('["one", "two', "length")
    with pytest.raises(Rejected, match="^truncated$"):
        parse_judge('{"reason": "the first is best, {"', 2, "length")


def test_a_whole_answer_that_ends_at_the_token_limit_is_kept() -> None:
    assert parse_record(GOOD, KEYS, "length").fields == FIELDS


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"best": 1, "worst": 1}', "best_equals_worst"),
        ('{"best": 3, "worst": 0}', "index_out_of_range"),
        ('{"best": -1, "worst": 0}', "index_out_of_range"),
        ('{"best": "first", "worst": 0}', "index_missing"),
        ('{"best": true, "worst": 0}', "index_missing"),
        ('{"worst": 0}', "index_missing"),
        ("the second one", "not_json"),
    ],
)
def test_judges_who_cannot_be_used(text: str, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        parse_judge(text, 3)


def test_judge() -> None:
    judged = parse_judge('{"reason": "r", "best": 2, "worst": "0", "scores": [1, 5, 7.5]}', 3)
    assert (judged.best, judged.worst, judged.scores, judged.reason) == (2, 0, [1.0, 5.0, 7.5], "r")
    assert parse_judge('{"best": 3, "worst": 1, "scores": [1]}', 3, index_base=1).best == 2
    assert parse_judge('{"best": 1, "worst": 2, "scores": [1]}', 3).scores == []


def test_brainstorm() -> None:
    assert parse_brainstorm('Tasks: ["find  a\\nroad", "find a road", "name a bird", 3, ""]') == ["find a road", "name a bird"]
    assert parse_brainstorm("['it is a list', 'of Python']") == ["it is a list", "of Python"]
    assert parse_brainstorm('{"tasks": ["one", "two"]}') == ["one", "two"]
    for text in ("none", "[]", "[1]"):
        with pytest.raises(Rejected):
            parse_brainstorm(text)


BEFORE = {"S1": "a red house on a hill", "S2": "a red home"}


def test_edits_replace_the_first_place_and_nothing_else() -> None:
    assert apply_edits(BEFORE, [["S1", "a ", "the "], ["S2", "home", "task's {x} \\1"]]) == {"S1": "the red house on a hill", "S2": "a red task's {x} \\1"}
    refused = {"edit_unknown_field": ["S9", "a", "b"], "edit_not_found": ["S1", "blue", "b"], "empty_field:S2": ["S2", "a red home", " "]}
    for reason, edit in [*refused.items(), ("edit_not_found", ["S1", "", "b"])]:
        with pytest.raises(Rejected, match=reason):
            apply_edits(BEFORE, [edit])


def test_changes_in_both_forms() -> None:
    keys = ["S1", "S2"]
    kept = parse_change('{"reason": "fine", "edits": []}', BEFORE, keys)
    assert (kept.after, kept.edits, kept.reason) == (BEFORE, [], "fine")
    assert parse_change('{"edits": [["S2", "red", "blue"], ["S2", "blue h", "green h"]]}', BEFORE, keys).after["S2"] == "a green home"
    full = '{"revision": {"S1": "a red house on a hill", "S2": "a blue home"}}'
    assert parse_change(full, BEFORE, keys, "full").edits == [["S2", "a red home", "a blue home"]]
    as_text = '{"revision": "{\\"S1\\": \\"x\\", \\"S2\\": \\"y\\"}"}'
    assert parse_change(as_text, BEFORE, keys, "full").after == {"S1": "x", "S2": "y"}
    assert parse_change(full, BEFORE, keys, "edits").after["S2"] == "a blue home", "the other form is understood"
    refused = {'{"edits": "none"}': "edit_shape", '{"edits": [["S1", "a"]]}': "edit_shape", '{"reason": "x"}': "missing_key:edits"}
    for text, reason in {**refused, '{"revision": {"S1": "x"}}': "missing_key:S2"}.items():
        with pytest.raises(Rejected, match=reason):
            parse_change(text, BEFORE, keys)


def test_protected_fields_are_left_alone_and_counted() -> None:
    change = parse_change('{"edits": [["S1", "red", "blue"], ["S2", "red", "blue"]]}', BEFORE, ["S1", "S2"], allowed=["S2"])
    assert change.after == {"S1": BEFORE["S1"], "S2": "a blue home"} and change.guarded == 1
