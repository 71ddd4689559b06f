"""The Batch API as a client mode: the same answers and keys as live, nothing lost and nothing paid twice, whenever the process dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from speedlit.context import Request, Sampling
from speedlit.errors import SpeedlitError, UsageError
from speedlit.pipeline.configure import parse
from speedlit.pipeline.services import Services
from speedlit.synthesis import batch, batchbook, batchwire
from speedlit.synthesis.batch import BatchBackend
from speedlit.synthesis.budget import Budget, Price
from speedlit.synthesis.client import HTTPBackend
from speedlit.synthesis.journal import Journal
from speedlit.synthesis.structured import Structured
from tests.synthesis import scripted
from tests.synthesis.batchserver import BatchServer
from tests.synthesis.server import Fault, Server

KEY = "sk-very-secret-0123456789"


def requests(count: int, start: int = 0) -> list[Request]:
    return [Request(f"r{i}", [{"role": "user", "content": f"question {i}"}], Sampling(seed=i, max_tokens=20)) for i in range(start, start + count)]


def echo(body: dict, n: int) -> str:
    return "answer to " + body["messages"][-1]["content"]


def backend(server: BatchServer, journal: Journal | Path, **over: Any) -> BatchBackend:
    return BatchBackend("m", server.url, journal, **{"poll": 0.01, "backoff": 0.01, "timeout": 5.0, "patience": 0.0, "say": lambda line: None, **over})


def run(server: BatchServer, path: Path, count: int = 20, **over: Any) -> list[str]:
    client = backend(server, path, **over)
    try:
        return [reply.error or reply.text for reply in client.generate(requests(count))]
    finally:
        client.close()


def counts(path: Path) -> dict[str, int]:
    journal = Journal(path)
    try:
        return dict(journal.counts())
    finally:
        journal.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


ALL = [f"answer to question {i}" for i in range(20)]


def test_answers_come_in_order_and_both_modes_share_them(path: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with BatchServer(echo) as server, Server(echo) as live:
        client = backend(server, path, requests=8, say=said.append)
        twice = requests(20) + requests(3)
        replies = list(client.generate(iter(twice)))
        assert [r.text for r in replies] == ALL + ALL[:3] and [r.id for r in replies] == [r.id for r in twice]
        assert [r.cached for r in replies] == [False] * 20 + [True] * 3
        assert (replies[0].tokens_in, replies[0].tokens_out, replies[0].finish_reason) == (11, 7, "stop")
        assert all(r.cached for r in client.generate(requests(20)))
        client.close()
        assert len(server.batches) == 3 and {len(server.files[b["input_file_id"]].splitlines()) for b in server.batches.values()} == {7, 6}
        direct = HTTPBackend("m", live.url, path)
        assert [r.text for r in direct.generate(requests(25))][:20] == ALL
        direct.close()
        assert sum(live.asked.values()) == 5, "the live client finds what the batches answered"
        assert run(server, path, 25) == ALL + [f"answer to question {i}" for i in range(20, 25)]
        assert set(server.processed.values()) == {1} and len(server.processed) == 20
    body = server.seen[0]
    assert body["model"] == "m" and body["max_tokens"] == 20 and "seed" in body
    assert any("7 requests handed in" in line for line in said) and any("completed, 7 of 7" in line for line in said)
    assert not [p for p in (tmp_path / "batches").rglob("*") if p.is_file() and p.name != ".lock"], "nothing is left over"


def test_what_failed_is_put_into_the_next_batch(path: Path) -> None:
    bad = {1: Fault(status=500, body='{"error": {"message": "oops"}}'), 2: Fault(status=429, body='{"error": {"code": "rate_limit_exceeded"}}')}

    def answer(body: dict, n: int) -> str | Fault:
        number = int(body["messages"][-1]["content"].split()[1])
        if number == 3:
            return Fault(status=400, body='{"error": {"code": "context_length_exceeded", "message": "too long"}}')
        if number == 4 and n == 0:
            return Fault(body='{"choices": []}')
        return bad[number] if number in bad and n < 2 else echo(body, n)

    with BatchServer(answer) as server:
        found = run(server, path)
        assert found == [*ALL[:3], "context_length_exceeded", *ALL[4:]]
        assert [len(server.files[b["input_file_id"]].splitlines()) for b in server.batches.values()] == [20, 3, 2]
    total = counts(path)
    assert (total["answered"], total["damaged"], total["failed"], total["orphaned"]) == (19, 1, 5, 0)


def test_a_request_that_never_works_is_given_up_with_its_reason(path: Path) -> None:
    never = Fault(status=500, body='{"error": {"message": "oops", "code": "server_error"}}')
    with BatchServer(lambda body, n: never if body["messages"][-1]["content"].endswith(" 7") else echo(body, n)) as server:
        assert run(server, path, retries=2) == [*ALL[:7], "server_error", *ALL[8:]]
        assert server.asked["question 7"] == 3


def test_an_expired_batch_is_handed_in_again_for_what_it_left_open(path: Path) -> None:
    with BatchServer(echo) as server:
        server.ends = lambda b, lines: ("expired", 12) if b["id"] == "batch_0" else ("completed", len(lines))
        assert run(server, path) == ALL
        assert set(server.processed.values()) == {1} and len(server.batches) == 2
    assert counts(path)["failed"] == 8


@pytest.mark.parametrize(
    ("code", "said"),
    [("invalid_json_line", "invalid_json_line: line 3 is bad.*mend that"), ("token_limit_exceeded", r"lower teacher.batch_requests \(now 20000\)")],
)
def test_a_batch_that_the_server_does_not_begin_is_told(code: str, said: str, path: Path) -> None:
    with BatchServer(echo) as server:

        def ends(b: dict, lines: list) -> tuple[str, int]:
            b["errors"] = {"data": [{"code": code, "message": "line 3 is bad"}]}
            return "failed", 0

        server.ends = ends
        with pytest.raises(SpeedlitError, match=said):
            run(server, path)
        assert counts(path)["orphaned"] == 0, "its rows are closed"
        server.ends = lambda b, lines: ("completed", len(lines))
        assert run(server, path) == ALL


def test_batches_wait_for_room_in_the_accounts_queue(path: Path) -> None:
    with BatchServer(echo) as server:

        def ends(b: dict, lines: list) -> tuple[str, int]:
            b["errors"] = {"data": [{"code": "token_limit_exceeded", "message": "queue is full"}]}
            return ("completed", len(lines)) if int(b["id"][6:]) in (0, 3, 5) else ("failed", 0)

        server.ends = ends
        assert run(server, path, requests=7) == ALL
        assert set(server.processed.values()) == {1}


def test_a_cancelled_batch_is_not_quietly_handed_in_again(path: Path) -> None:
    with BatchServer(echo) as server:
        server.ends = lambda b, lines: ("cancelled", 5) if b["id"] == "batch_0" else ("completed", len(lines))
        with pytest.raises(SpeedlitError, match="batch_0 was cancelled at the server: start again to ask the 15 requests"):
            run(server, path)
        assert counts(path)["answered"] == 5, "what it had answered is kept"
        assert run(server, path) == ALL and set(server.processed.values()) == {1}


TROUBLE = {
    "upload answers 500": ("POST", "/files", True, Fault(status=500, body="oops")),
    "upload is cut": ("POST", "/files", False, True),
    "create answers 429": ("POST", "/batches", True, Fault(status=429, body="{}", headers={"retry-after": "0.01"})),
    "create is cut before": ("POST", "/batches", True, True),
    "create is cut after": ("POST", "/batches", False, True),
    "create answers 500 after": ("POST", "/batches", False, Fault(status=500, body="oops")),
    "create answers nonsense after": ("POST", "/batches", False, Fault(body="<html>")),
    "look is cut": ("GET", "/batches/batch_0", True, True),
    "look answers nonsense": ("GET", "/batches/batch_0", True, Fault(body="[]")),
    "download answers 503": ("GET", "/files/file_1/content", True, Fault(status=503, body="busy")),
    "download is cut": ("GET", "/files/file_1/content", True, Fault(body="x" * 10, headers={"content-length": "1000"})),
    "download is short": ("GET", "/files/file_1/content", True, Fault(body='{"custom_id": "x"}\n')),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_a_passing_fault_of_a_call_costs_nothing(name: str, path: Path) -> None:
    method, where, before, what = TROUBLE[name]
    hits = []

    def trouble(m: str, p: str, b: bool) -> Fault | bool | None:
        if (m, p, b) == (method, where, before) and not hits:
            hits.append(1)
            return what
        return None

    with BatchServer(echo) as server:
        server.trouble = trouble
        assert run(server, path, timeout=1.0) == ALL
        assert hits and set(server.processed.values()) == {1} and len(server.batches) == 1
    assert counts(path)["sent"] == counts(path)["answered"] == 20


FINAL = {
    "wrong key": (("POST", "/files"), Fault(status=401, body='{"error": {"message": "Incorrect API key: ' + KEY + '"}}'), "OPENAI_API_KEY"),
    "no Batch API": (("POST", "/files"), Fault(status=404, body="{}"), "teacher.mode to live"),
    "no credit": (("POST", "/batches"), Fault(status=429, body='{"error": {"code": "insufficient_quota"}}'), "top it up"),
    "batch forgotten": (("GET", "/batches/batch_0"), Fault(status=404, body="{}"), "remove .*json to have its requests asked anew"),
    "down for good": (("GET", "/batches/batch_0"), Fault(status=500, body="oops"), "does not tell of the batch batch_0.*batches that were made go on"),
}


@pytest.mark.parametrize("name", FINAL)
def test_a_lasting_fault_is_one_sentence_and_the_next_start_goes_on(name: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    where, what, said = FINAL[name]
    with BatchServer(echo) as server:
        server.trouble = lambda m, p, b: what if (m, p) == where and b else None
        with pytest.raises(SpeedlitError, match=said) as caught:
            run(server, path, retries=2)
        assert "\n" not in str(caught.value) and KEY not in str(caught.value)
        server.trouble = lambda m, p, b: None
        assert run(server, path) == ALL
        assert set(server.processed.values()) == {1} and len(server.batches) == 1
    assert all(KEY.encode() not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_a_file_that_the_server_has_lost_is_uploaded_anew(path: Path) -> None:
    with BatchServer(echo) as server:
        server.trouble = lambda m, p, b: True if (m, p, b) == ("POST", "/batches", True) else None
        with pytest.raises(SpeedlitError, match="does not make a batch"):
            run(server, path, retries=1)
        server.trouble = lambda m, p, b: None
        server.files.clear()
        with pytest.raises(SpeedlitError, match="no such file"):
            run(server, path)
        assert run(server, path) == ALL and set(server.processed.values()) == {1}
    assert counts(path)["sent"] == 20


def test_a_server_that_is_down_for_a_while_is_waited_for(path: Path) -> None:
    said: list[str] = []
    with BatchServer(echo) as server:
        looks = iter(range(100))
        server.trouble = lambda m, p, b: Fault(status=503, body="busy") if p.startswith("/batches/") and b and next(looks) < 8 else None
        assert run(server, path, retries=1, patience=60.0, say=said.append) == ALL
    assert any("does not tell of the batch" in line for line in said) and set(server.processed.values()) == {1}


def test_a_server_that_refuses_every_line_is_reported_once(path: Path) -> None:
    with BatchServer(lambda body, n: Fault(status=400, body='{"error": {"message": "top_p must be positive"}}')) as server:
        with pytest.raises(SpeedlitError, match="8 requests in a row.*top_p must be positive"):
            run(server, path)
        assert len(server.batches) == 1


# ---- kill -9 ------------------------------------------------------------------------------------------------------------------------

STEPS = ((batchbook.Book, "write"), (batchbook.Book, "save"), (batchbook.Book, "done"), (Journal, "append"), (batchwire.BatchWire, "upload"),
         (batchwire.BatchWire, "create"), (batchwire.BatchWire, "fetch"))  # fmt: skip


def die_at(step: int, url: str, path: Path) -> None:
    """In a child: run, and die by SIGKILL just before or just after the n-th step that changes something."""
    taken = [0]

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            for after in (False, True):
                if after:
                    result = function(*args, **kwargs)
                if taken[0] == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                taken[0] += 1
            return result

        return call

    for owner, name in STEPS:
        setattr(owner, name, deadly(getattr(owner, name)))
    batch.ROWS = 8
    client = BatchBackend("m", url, path, requests=12, poll=0.01, backoff=0.01, say=lambda line: None)
    list(client.generate(requests(20)))
    client.close()


def test_kill_9_at_any_step_loses_nothing_and_pays_nothing_twice(tmp_path: Path) -> None:
    """Two batches; the process dies before or after every third step in turn, the next one goes on and dies too, the last one finishes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["openai", "tests.synthesis.test_batch"])
    deaths, points = 0, 0
    for first in range(0, 60, 3):
        path = tmp_path / str(first) / "journal.sqlite"
        with BatchServer(echo) as server:
            codes = []
            for step in (first, first // 2):
                child = context.Process(target=die_at, args=(step, server.url, path))
                child.start()
                child.join(60)
                codes.append(child.exitcode)
            assert set(codes) <= {-signal.SIGKILL, 0}
            deaths += codes.count(-signal.SIGKILL)
            points += codes[0] != 0
            assert run(server, path) == ALL
            assert set(server.processed.values()) == {1} and len(server.processed) == 20, f"paid twice after a death at step {first}"
        total = counts(path)
        assert (total["answered"], total["orphaned"]) == (20, 0)
        assert total["sent"] == 20, "the budget is charged once for each request"
        if codes[0] == 0:
            break
    assert codes[0] == 0 and points >= 9 and deaths > points


# ---- stages -------------------------------------------------------------------------------------------------------------------------


def test_a_stage_in_batches_gives_what_it_gives_live(tmp_path: Path) -> None:
    with Server(scripted.answer) as live, BatchServer(scripted.answer) as server:
        scripted.run_until("preferences", tmp_path / "live", live)
        for name in ("seed", "preferences"):
            ctx = scripted.context(name, tmp_path / "batch", live, teacher={**scripted.CONFIG["teacher"], "mode": "batch"})
            ctx.inputs = {stage: tmp_path / "live" / stage for stage in ctx.inputs}
            made = {"batches": backend(server, tmp_path / "batch" / "journal.sqlite", requests=8)}
            ctx.backend = made.__getitem__
            import_module(f"speedlit.synthesis.stages.{name}").run(ctx)
            made["batches"].close()
            assert ctx.ledger.notes["mode"] == "batch", "what the ledger of costs goes by"
            file = {"seed": "records", "preferences": "preferences"}[name] + ".jsonl"
            assert (tmp_path / "batch" / name / file).read_bytes() == (tmp_path / "live" / name / file).read_bytes()
        assert len(server.batches) > 5
        ctx = scripted.context("tasks", tmp_path / "batch", live, teacher={**scripted.CONFIG["teacher"], "mode": "batch"})
        ctx.inputs = {stage: tmp_path / "live" / stage for stage in ctx.inputs}
        import_module("speedlit.synthesis.stages.tasks").run(ctx)
        assert "mode" not in ctx.ledger.notes, "brainstorming stays live: everything waits for it"


def test_the_config_makes_the_backend(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("teacher: {mode: batch, batch_poll: 5, batch_requests: 77, structured: true, base_url: http://127.0.0.1:9/v1}\n")
    with Services(parse(str(file)), tmp_path) as services:
        made = services.backend("batches")
        assert isinstance(made, Structured) and isinstance(made.prober, HTTPBackend) and isinstance(made.inner, BatchBackend)
        assert (made.inner.poll, made.inner.requests, made.inner.journal.path) == (5.0, 77, tmp_path / "journal.sqlite")
        live = services.backend("teacher")
        assert isinstance(live, Structured) and live.inner is live.prober
    for text, said in (("mode: batches", "choose live or batch"), ("batch_requests: 60000", "at most 50000"), ("batch_poll: 0", "above 0|more than 0")):
        file.write_text(f"teacher: {{{text}}}\n")
        with pytest.raises(UsageError, match=said):
            parse(str(file))


# ---- shards and budget --------------------------------------------------------------------------------------------------------------


def test_another_cut_into_shards_takes_up_the_batches_of_the_first(tmp_path: Path) -> None:
    with BatchServer(echo, polls=10**9) as server:
        for index in range(2):
            client = backend(server, Journal.for_shard(tmp_path, (index, 2)), retries=0)
            server.trouble = lambda m, p, b: Fault(status=500, body="down") if p.startswith("/batches/") and b else None
            with pytest.raises(SpeedlitError, match="does not tell"):
                list(client.generate(requests(20)[index::2]))
            client.journal.close()
            client.close()
        server.trouble, server.polls = lambda m, p, b: None, 1
        assert run(server, tmp_path / "journal.sqlite") == ALL
        assert len(server.batches) == 2 and set(server.processed.values()) == {1}
    total = counts(tmp_path / "journal.sqlite")
    assert (total["sent"], total["answered"], total["orphaned"]) == (20, 20, 0)


def test_a_second_process_on_the_same_shard_is_refused(path: Path) -> None:
    with BatchServer(echo) as server:
        client = backend(server, path)
        list(client.generate(requests(2)))
        with pytest.raises(SpeedlitError, match="another process hands in the batches"):
            run(server, path)
        client.close()


def test_the_budget_holds_at_the_batch_price(path: Path, tmp_path: Path) -> None:
    prices = {"m": Price(1000.0, 1000.0, batch=0.5)}

    def capped(**caps: float) -> list[str]:
        budget = Budget(tmp_path, caps, prices, own=path)
        try:
            return run(server, path, budget=budget)
        finally:
            budget.close()

    with BatchServer(echo) as server:
        with pytest.raises(SpeedlitError, match="budget.calls of 8 calls was passed.*8 of 20 requests.*Raise budget.calls"):
            capped(calls=8)
        assert sum(server.processed.values()) == 8
        spent = Budget(tmp_path, {}, prices)
        spent.account.refresh()
        assert spent.account.committed().usd == pytest.approx(8 * 18 * 1000 / 1e6 * 0.5)
        spent.close()
        with pytest.raises(SpeedlitError, match="budget.usd"):
            capped(usd=spent.account.committed().usd + 0.05)
        assert sum(server.processed.values()) == 8, "the worst case of one request is more than what is left"
        assert capped(usd=spent.account.committed().usd + 0.5) == ALL
        assert set(server.processed.values()) == {1} and len(server.batches) > 2, "what settles makes room for the next batch"
