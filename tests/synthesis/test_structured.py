"""``response_format`` is sent only to a server that has shown it keeps to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speedlit.context import Request, Sampling
from speedlit.files import read_jsonl
from speedlit.records import Prompt
from speedlit.synthesis.client import HTTPBackend
from speedlit.synthesis.journal import Journal, request_key
from speedlit.synthesis.schemas import change_schema, judge_schema, record_schema
from speedlit.synthesis.stages.common import write_requests
from speedlit.synthesis.structured import QUESTION, Structured
from speedlit.synthesis.templates import load_set
from tests.synthesis.scripted import answer, context, run_until
from tests.synthesis.server import Fault, Server


def example(schema: dict) -> object:
    """The smallest value that a schema allows."""
    if "enum" in schema:
        return schema["enum"][-1]
    if schema["type"] == "object":
        return {key: example(value) for key, value in schema["properties"].items()}
    if schema["type"] == "array":
        return [example(schema["items"]) for _ in range(schema.get("minItems", 0))]
    return "text" if schema["type"] == "string" else 1


def keeps(body: dict, n: int) -> str:
    shape = body.get("response_format")
    return json.dumps(example(shape["json_schema"]["schema"])) if shape else "A rose is red."


def ignores(body: dict, n: int) -> str:
    return "A rose is red."


def refuses(body: dict, n: int) -> str | Fault:
    return Fault(status=400, body='{"error": {"message": "no response_format", "code": "unsupported"}}') if "response_format" in body else ignores(body, n)


def wanted(count: int) -> list[Request]:
    return [Request(f"r{i}", [{"role": "user", "content": f"question {i}"}], Sampling(seed=i), schema=record_schema(["b", "a"])) for i in range(count)]


def ask(server: Server, journal: Path, said: list[str], count: int = 20) -> list[str]:
    client = HTTPBackend("m", server.url, journal, concurrency=4, backoff=0.01)
    backend = Structured(client, client, server.url, said.append)
    replies = list(backend.generate(wanted(count)))
    replies += list(backend.generate(wanted(3)))
    backend.close()
    assert not any(reply.error for reply in replies)
    return [reply.text for reply in replies[:count]]


def test_a_server_that_keeps_to_schemas_is_given_them(tmp_path: Path) -> None:
    said: list[str] = []
    seen: list[dict] = []
    with Server(lambda body, n: seen.append(body) or keeps(body, n)) as server:
        for _ in range(2):
            assert ask(server, tmp_path / "journal.sqlite", said) == ['{"b": "text", "a": "text"}'] * 20
    journal = Journal(tmp_path / "journal.sqlite")
    assert journal.counts()["answered"] == 21, "one probe, also over restarts"
    journal.close()
    assert not said
    shape = seen[-1]["response_format"]
    assert shape["type"] == "json_schema" and shape["json_schema"]["strict"] is True
    assert list(shape["json_schema"]["schema"]["properties"]) == ["b", "a"] and shape["json_schema"]["schema"]["additionalProperties"] is False


@pytest.mark.parametrize(("server", "why"), [(ignores, "ignores response_format"), (refuses, "refuses response_format: unsupported")])
def test_a_server_that_does_not_is_asked_without_and_that_is_said_once(server: object, why: str, tmp_path: Path) -> None:
    said: list[str] = []
    seen: list[dict] = []
    with Server(lambda body, n: seen.append(body) or server(body, n)) as running:
        ask(running, tmp_path / "journal.sqlite", said)
    assert len(said) == 1 and why in said[0] and running.url in said[0] and "\n" not in said[0]
    assert {body["messages"][-1]["content"] for body in seen if "response_format" in body} == {QUESTION}


def test_another_server_is_probed_anew(tmp_path: Path) -> None:
    for server, count in ((ignores, 1), (keeps, 0)):
        said: list[str] = []
        with Server(server) as running:
            ask(running, tmp_path / "journal.sqlite", said, count=3)
        assert len(said) == count


def test_the_schema_is_part_of_the_cache_key_only_where_there_is_one() -> None:
    with_schema = wanted(1)[0]
    without = Request(with_schema.id, with_schema.messages, with_schema.sampling)
    other = Request(with_schema.id, with_schema.messages, with_schema.sampling, schema=record_schema(["a", "b"]))
    assert len({request_key("teacher", "m", request) for request in (with_schema, without, other)}) == 3


@pytest.mark.parametrize("name", ["paper", "mini"])
def test_schemas_are_read_off_the_templates(name: str) -> None:
    prompts = load_set(name)
    assert record_schema(prompts.keys("sts"))["required"] == ["S1", "S2", "S3"]
    judge = judge_schema(prompts.roles["judge"].text, 3, 0)
    assert judge["required"] == ["reason", "best", "worst", "scores"] and judge["properties"]["best"]["enum"] == [0, 1, 2]
    assert change_schema(prompts.roles["critique"].formats["full"], ["a"], "full")["required"] == ["reason", "revision"]
    assert change_schema(prompts.roles["revise"].formats["edits"], ["a"], "edits")["required"] == ["edits"]


def test_local_writers_get_the_schema_by_their_own_switch(tmp_path: Path) -> None:
    prompt = Prompt("t", "sts", "task", "topic", "g", "train", "root", 0, "paper/sts@1", {}, [{"role": "user", "content": "x"}], ["S2", "S1"])
    with Server(answer) as server:
        for local, teacher in ((True, False), (False, True)):
            ctx = context("candidates", tmp_path, server, sampling={"structured": local}, teacher={"structured": teacher})
            shapes = {role: [request.schema for _, request in write_requests(ctx, role, [prompt])] for role in ("junior", "teacher")}
            assert shapes == {"junior": [record_schema(["S2", "S1"]) if local else None], "teacher": [record_schema(["S2", "S1"]) if teacher else None]}


def test_stages_send_the_schema_of_their_template_when_it_is_switched_on(tmp_path: Path) -> None:
    seen: list[tuple[str, list[str]]] = []

    def teacher(body: dict, n: int) -> str:
        if shape := body.get("response_format"):
            seen.append((body["messages"][-1]["content"], shape["json_schema"]["schema"]["required"]))
        return answer(body, n)

    with Server(teacher) as server:
        run_until("revisions", tmp_path / "on", server, teacher={"temperature": 1.0, "max_tokens": 200, "structured": True})
        shapes = {tuple(required) for _, required in seen}
        kinds = {tuple(prompt["keys"]) for prompt in read_jsonl(tmp_path / "on" / "tasks" / "prompts.jsonl") if prompt["use"] == "seed"}
        assert shapes == {*kinds, ("reason", "best", "worst", "scores"), ("reason", "edits")}
        assert all(("<candidate " in text) == ("best" in required) for text, required in seen)
        count = len(seen)
        run_until("revisions", tmp_path / "off", server)
    assert len(seen) == count, "off by default"
