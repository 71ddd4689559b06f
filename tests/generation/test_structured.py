"""Schema-constrained sampling: with it every sample parses, a base model's included; without it nothing changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("xgrammar", reason="xgrammar (extra `structured`) is not installed")

from speedlit.context import Reply, Request, Sampling
from speedlit.errors import SpeedlitError, UsageError
from speedlit.generation.grammar import Grammars, grammar
from speedlit.generation.local import LocalBackend
from speedlit.synthesis.parsing import Rejected, parse_change, parse_record
from speedlit.synthesis.schemas import change_schema, record_schema
from speedlit.synthesis.templates import derived_random, load_set
from tests.helpers import tiny_llama

BASE = Path(__file__).parents[2] / "speedlit" / "offline" / "base"
KEYS = {kind: load_set("mini").keys(kind) for kind in load_set("mini")}


def requests(per_kind: int, shaped: bool = True, **sampling: float) -> list[Request]:
    settings = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 160, **sampling}
    wanted = []
    for kind, keys in KEYS.items():
        for i in range(per_kind):
            messages, _ = load_set("mini")[kind].render("Find a thing by its place", "harbour", derived_random(kind, i))
            wanted.append(Request(kind, messages, Sampling(**settings, seed=i), i, record_schema(keys) if shaped else None))
    return wanted


def generate(folder: Path, wanted: list[Request], **settings: object) -> list[Reply]:
    backend = LocalBackend(folder, **{"batch_size": 16, "device": "cpu", **settings})
    try:
        return list(backend.generate(wanted))
    finally:
        backend.close()


def parsed(request: Request, reply: Reply) -> str:
    try:
        return parse_record(reply.text, KEYS[request.id], reply.finish_reason).parsed_by
    except Rejected as reason:
        return str(reason)


def test_a_base_that_knows_nothing_of_json_writes_it() -> None:
    wanted = requests(3)
    free = generate(BASE, requests(3, shaped=False))
    assert not any(parsed(*pair) == "strict" for pair in zip(wanted, free, strict=True)), "this base writes no records by itself"
    for sampling in ({}, {"temperature": 1.5, "top_p": 0.9}, {"temperature": 0.0}):
        wanted = requests(3, **sampling)
        said = {(parsed(request, reply), reply.finish_reason) for request, reply in zip(wanted, generate(BASE, wanted), strict=True)}
        assert said <= {("strict", "stop"), ("truncated", "length")} and ("strict", "stop") in said


def test_a_random_model_writes_json_up_to_the_token_limit(tmp_path: Path) -> None:
    wanted = requests(1, max_tokens=250)
    said = [parsed(request, reply) for request, reply in zip(wanted, generate(tiny_llama(tmp_path), wanted), strict=True)]
    assert set(said) <= {"strict", "truncated"}


def test_rows_with_and_without_a_schema_share_a_batch() -> None:
    shaped, free = requests(2), requests(2, shaped=False)
    mixed = [request for pair in zip(shaped, free, strict=True) for request in pair]
    found = generate(BASE, mixed)
    assert [r.text for r in found[::2]] == [r.text for r in generate(BASE, shaped, batch_size=3)]
    assert [r.text for r in found[1::2]] == [r.text for r in generate(BASE, free)]


def test_edits_are_lists_of_three_texts() -> None:
    record = {"S1": "a red door", "S2": "a door", "S3": "a blue door"}
    schema = change_schema("", list(record), "edits")
    wanted = [Request(str(i), [{"role": "user", "content": json.dumps(record)}], Sampling(seed=i, max_tokens=120), 0, schema) for i in range(12)]
    for reply in generate(BASE, wanted):
        if reply.finish_reason == "stop":
            try:
                parse_change(reply.text, record, list(record), "edits")
            except Rejected as reason:
                assert not str(reason).startswith(("not_json", "edit_shape", "missing_key", "truncated", "empty\n")), reply.text


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    return Grammars(tokenizer, len(tokenizer), [tokenizer.eos_token_id])


GOOD = ['{"a b": "x", "größe": "y"}', ' {"a b": "\\"x\\" \\\\ \\n z", "größe": "größer {q}"}', '{"a b": "\\"", "größe": "1"}']
BAD = [
    '{"a b": "", "größe": "y"}', '{"a b": " x", "größe": "y"}', '{"a b": "\\n", "größe": "y"}', '{"a b": "x\ty", "größe": "y"}',
    '{"a b": "\\ud800", "größe": "y"}', '{"größe": "y", "a b": "x"}', '{"a b": "x"}', '{"a b": 1, "größe": "y"}', '{"a b": "x","größe": "y"}',
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD + BAD)
def test_what_a_records_grammar_accepts(text: str, grammars: Grammars) -> None:
    matcher = grammars.matcher(record_schema(["a b", "größe"]))
    assert (matcher.accept_string(text) and matcher.is_completed()) == (text in GOOD)


def test_lists_numbers_and_choices(grammars: Grammars) -> None:
    from speedlit.synthesis.schemas import judge_schema

    for text, schema, good in (
        ('{"reason": "r", "best": 1, "worst": 3, "scores": [1, 2.5, -3]}', judge_schema('"reason" "scores"', 3, 1), True),
        ('{"reason": "r", "best": 0, "worst": 3, "scores": [1, 2, 3]}', judge_schema('"reason" "scores"', 3, 1), False),
        ('{"best": 0, "worst": 1}', judge_schema("", 2, 0), True),
        ('{"edits": []}', change_schema("", ["a"], "edits"), True),
        ('{"edits": [["a", "", " "], ["a", "b", "c"]]}', change_schema("", ["a"], "edits"), True),
        ('{"edits": [["a", "b"]]}', change_schema("", ["a"], "edits"), False),
        ('{"reason": "r", "revision": {"a": "x", "b": "y"}}', change_schema('"reason"', ["a", "b"], "full"), True),
    ):
        matcher = grammars.matcher(schema)
        assert (matcher.accept_string(text) and matcher.is_completed()) is good, text
        assert not good or isinstance(json.loads(text), dict)


def test_control_tokens_are_no_text(grammars: Grammars) -> None:
    import torch

    constraint = grammars.constraint([record_schema(["a"])])
    assert constraint is not None
    for text in ("{", '"a', '": ', '"x'):
        for token in grammars.tokenizer.encode(text, add_special_tokens=False):
            constraint.take([0], [token])
    allowed = torch.isfinite(constraint.mask(torch.zeros(1, grammars.size), [0]))[0]
    assert int(allowed.sum()) > grammars.size // 2 and not allowed[grammars.tokenizer.all_special_ids].any(), "inside a text any text may follow"


def test_what_has_no_grammar_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'no grammar for the JSON schema \{"type":"null"\}'):
        grammar(record_schema(["a"]) | {"properties": {"a": {"type": "null"}}})


def test_a_vocabulary_that_cannot_spell_json_is_one_sentence(grammars: Grammars) -> None:
    import torch

    constraint = grammars.constraint([record_schema(["a"])])
    assert constraint is not None
    masked = constraint.mask(torch.zeros(1, grammars.size), [0])
    assert 0 < int(torch.isfinite(masked).sum()) < 20, "an answer begins with a brace"
    with pytest.raises(SpeedlitError, match="sampling.structured: this model's tokenizer"):
        constraint.take([0], [int(masked.argmin())])
