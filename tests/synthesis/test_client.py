"""The client against a real server: order, faults, journal, kill -9, secrets."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speedlit.context import Request, Sampling
from speedlit.errors import SpeedlitError
from speedlit.synthesis.client import HTTPBackend
from speedlit.synthesis.journal import Journal, request_key
from tests.synthesis.server import Fault, Server, completion

KEY = "sk-very-secret-0123456789"


def requests(count: int, start: int = 0) -> list[Request]:
    return [Request(f"r{i}", [{"role": "user", "content": f"question {i}"}], Sampling(seed=i)) for i in range(start, start + count)]


def echo(body: dict, n: int) -> str:
    return "answer to " + body["messages"][-1]["content"]


def backend(server: Server, journal: Path | None = None, **over: object) -> HTTPBackend:
    return HTTPBackend("m", server.url, journal, **{"concurrency": 8, "timeout": 2.0, "backoff": 0.01, **over})


def test_answers_come_in_order_and_a_second_run_asks_nothing(tmp_path: Path) -> None:
    with Server(echo, delay=0.01) as server:
        for cached in (False, True):
            client = backend(server, tmp_path / "journal.sqlite")
            replies = list(client.generate(iter(requests(100))))
            client.close()
            assert [r.text for r in replies] == [f"answer to question {i}" for i in range(100)]
            assert all(r.cached is cached for r in replies)
            assert (replies[0].tokens_in, replies[0].tokens_out) == (11, 7)
        assert max(server.asked.values()) == 1
        assert 2 <= server.most <= 8


def test_equal_requests_in_flight_are_asked_once() -> None:
    with Server(echo) as server:
        client = backend(server)
        same = [Request(f"r{i}", [{"role": "user", "content": "one question"}], Sampling(seed=1)) for i in range(50)]
        replies = list(client.generate(same))
        client.close()
    assert server.asked["one question"] == 1
    assert [r.id for r in replies] == [r.id for r in same]
    assert sum(not r.cached for r in replies) == 1


PASSING = {
    "429": Fault(status=429, body='{"error": {"message": "slow down", "code": "rate_limit_exceeded"}}'),
    "429 with Retry-After": Fault(status=429, body="{}", headers={"retry-after": "0.02"}),
    "429 with a date": Fault(status=429, body="{}", headers={"retry-after": "Mon, 01 Jan 2024 00:00:00 GMT"}),
    "500": Fault(status=500, body="oops"),
    "503 in HTML": Fault(status=503, body="<html>busy</html>", headers={"content-type": "text/html"}),
    "reset": Fault("reset"),
    "hang": Fault("hang"),
    "drip": Fault("drip", body=completion("too slow") + " " * 200),
    "truncated JSON": Fault(body=completion("cut")[:40]),
    "wrong JSON": Fault(body='{"object": "list", "data": []}'),
    "empty choices": Fault(body='{"choices": []}'),
    "HTML with status 200": Fault(body="<html>log in</html>", headers={"content-type": "text/html"}),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_passing_fault_is_asked_again(name: str, tmp_path: Path) -> None:
    def answer(body: dict, n: int) -> str | Fault:
        return PASSING[name] if n == 0 and body["messages"][-1]["content"].endswith("1") else echo(body, n)

    with Server(answer) as server:
        journal = Journal(tmp_path / "journal.sqlite")
        client = backend(server, journal, timeout=0.5)
        replies = list(client.generate(requests(12)))
        client.close()
        assert [r.text for r in replies] == [f"answer to question {i}" for i in range(12)]
        assert server.asked["question 1"] == 2
        counts = journal.counts()
        journal.close()
    assert (counts["answered"], counts["failed"] + counts["damaged"], counts["orphaned"]) == (12, 2, 0)
    assert counts["damaged"] == (2 if PASSING[name].how == "status" and PASSING[name].status == 200 else 0)


def test_retry_after_is_honoured() -> None:
    times: list[float] = []

    def answer(body: dict, n: int) -> str | Fault:
        times.append(time.monotonic())
        return Fault(status=429, body="{}", headers={"retry-after": "0.6"}) if n == 0 else echo(body, n)

    with Server(answer) as server:
        client = backend(server)
        assert next(iter(client.generate(requests(1)))).text
        client.close()
    assert times[1] - times[0] >= 0.6


PERMANENT = {
    "wrong key": (Fault(status=401, body='{"error": {"message": "Incorrect API key provided: ' + KEY + '"}}'), "OPENAI_API_KEY"),
    "no such model": (Fault(status=404, body='{"error": {"message": "no model"}}'), "teacher.model"),
    "no credit": (Fault(status=429, body='{"error": {"code": "insufficient_quota", "message": "pay"}}'), "credit"),
    "wait for hours": (Fault(status=429, body="{}", headers={"retry-after": "7200"}), "7200 seconds"),
}


@pytest.mark.parametrize("name", PERMANENT)
def test_a_permanent_fault_stops_the_run_in_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    fault, hint = PERMANENT[name]
    with Server(lambda body, n: fault) as server:
        client = backend(server, tmp_path / "journal.sqlite")
        with pytest.raises(SpeedlitError, match=hint) as caught:
            list(client.generate(requests(500)))
        client.close()
        assert sum(server.asked.values()) <= 16, "reported once, not five hundred times"
    assert server.url in str(caught.value) and "\n" not in str(caught.value) and KEY not in str(caught.value)
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.iterdir()), "the key is in the journal"


def test_a_refused_request_is_one_rejection_among_good_ones() -> None:
    refusal = Fault(status=400, body='{"error": {"code": "context_length_exceeded", "message": "too long"}}')
    with Server(lambda body, n: refusal if body["messages"][-1]["content"].endswith("3") else echo(body, n)) as server:
        client = backend(server)
        replies = list(client.generate(requests(10)))
        client.close()
    assert [r.error for r in replies] == ["context_length_exceeded" if i == 3 else "" for i in range(10)]
    assert server.asked["question 3"] == 1


def test_a_server_that_refuses_everything_is_reported_early() -> None:
    with Server(lambda body, n: Fault(status=400, body='{"error": {"message": "top_p must be positive"}}')) as server:
        client = backend(server)
        with pytest.raises(SpeedlitError, match="8 requests in a row.*top_p must be positive"):
            list(client.generate(requests(300)))
        client.close()
    assert sum(server.asked.values()) < 40


def test_no_server_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    client = HTTPBackend("m", backoff=0.01)
    with pytest.raises(SpeedlitError, match=r"cannot reach the teacher at http://127.0.0.1:9/v1.*OPENAI_BASE_URL"):
        list(client.generate(requests(3)))
    client.close()


def test_a_full_disk_stops_the_run_and_keeps_what_was_stored(tmp_path: Path) -> None:
    with Server(echo) as server:
        journal = Journal(tmp_path / "journal.sqlite")
        client = backend(server, journal)
        list(client.generate(requests(20)))
        pages = journal._own.execute("PRAGMA page_count").fetchone()[0]
        journal._own.execute(f"PRAGMA max_page_count={pages + 2}")  # SQLite then answers as on a full disk
        with pytest.raises(SpeedlitError, match="no space left"):
            list(client.generate(requests(400, 20)))
        client.close()
        journal.close()
        journal = Journal(tmp_path / "journal.sqlite")
        client = backend(server, journal)
        replies = list(client.generate(requests(420)))
        client.close()
        journal.close()
    assert [r.text for r in replies] == [f"answer to question {i}" for i in range(420)]
    assert all(server.asked[f"question {i}"] == 1 for i in range(20))


SCRIPT = """
import sys
from pathlib import Path
from speedlit.synthesis.client import HTTPBackend
from tests.synthesis.test_client import requests
client = HTTPBackend("m", sys.argv[1], Path(sys.argv[2]), concurrency=8)
for reply in client.generate(requests(400)):
    print(reply.id, flush=True)
"""


def test_kill_9_loses_no_answer_and_asks_none_twice(tmp_path: Path) -> None:
    """What was handed on before a kill is on the disk; only requests in flight at the kill are asked again."""
    path = tmp_path / "journal.sqlite"
    handed: set[str] = set()
    root = Path(__file__).parents[2]
    with Server(echo, delay=0.02) as server:
        for lines in (40, 150):
            process = subprocess.Popen([sys.executable, "-c", SCRIPT, server.url, str(path)], stdout=subprocess.PIPE, text=True, cwd=root)
            assert process.stdout is not None
            handed |= {process.stdout.readline().strip() for _ in range(lines)}
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
        stored = {row[0] for row in sqlite3.connect(path).execute("SELECT key FROM attempts WHERE event = 'answered'")}
        by_key = {request_key("teacher", "m", request): request for request in requests(400)}
        assert handed <= {by_key[key].id for key in stored}, "an answer was handed on before it was stored"
        before = dict(server.asked)
        client = HTTPBackend("m", server.url, path, concurrency=8)
        replies = list(client.generate(requests(400)))
        client.close()
    assert [r.text for r in replies] == [f"answer to question {i}" for i in range(400)]
    for key in stored:
        text = by_key[key].messages[-1]["content"]
        assert server.asked[text] == before[text], "an answered request was asked again"
    assert sum(server.asked.values()) <= 400 + 2 * 8


def test_shards_have_journals_of_their_own_and_read_all(tmp_path: Path) -> None:
    with Server(echo) as server:
        for index in range(2):
            client = backend(server, Journal.for_shard(tmp_path, (index, 2)))
            list(client.generate(requests(40)[index::2]))
            client.close()
        client = backend(server, Journal.for_shard(tmp_path))
        assert all(r.cached for r in client.generate(requests(40)))
        client.close()
    assert len(list(tmp_path.glob("journal-*-of-00002.sqlite"))) == 2
    assert sum(server.asked.values()) == 40


def test_the_key_of_an_answer() -> None:
    base = Request("a", [{"role": "user", "content": "x"}], Sampling(seed=1))
    assert request_key("teacher", "m", base) == request_key("teacher", "m", Request("other id", base.messages, base.sampling))
    others = [
        Request("a", [{"role": "user", "content": "y"}], base.sampling), Request("a", base.messages, Sampling(seed=2)),
        Request("a", base.messages, Sampling(temperature=0.5, seed=1)), Request("a", base.messages, base.sampling, index=1),
    ]  # fmt: skip
    keys = {request_key("teacher", "m", r) for r in [base, *others]} | {request_key("judge", "m", base), request_key("teacher", "n", base)}
    assert len(keys) == 7


def test_overload_halves_the_requests_in_flight_and_success_raises_them() -> None:
    from speedlit.synthesis.pacing import Gate

    gate = Gate(16)
    gate.flying = 1
    gate.leave(overloaded=True)
    assert gate.limit == 8
    for _ in range(200):
        gate.flying += 1
        gate.leave(overloaded=False)
    assert gate.limit == 16


def test_a_run_with_thirty_percent_faults_loses_nothing(tmp_path: Path) -> None:
    faults = [fault for name, fault in PASSING.items() if name not in ("hang", "drip", "429 with a date")]

    def answer(body: dict, n: int) -> str | Fault:
        rng = random.Random(f"{body['messages'][-1]['content']}:{n}")
        return rng.choice(faults) if rng.random() < 0.3 else echo(body, n)

    with Server(answer) as server:
        journal = Journal(tmp_path / "journal.sqlite")
        client = backend(server, journal, concurrency=64, retries=12)
        replies = list(client.generate(requests(1000)))
        client.close()
        counts = journal.counts()
        rows = journal._own.execute("SELECT COUNT(*), COUNT(DISTINCT key) FROM attempts WHERE event = 'answered'").fetchone()
        lost = journal._own.execute("SELECT COUNT(*) FROM attempts WHERE detail = 'connection_lost'").fetchone()[0]
        journal.close()
    assert [r.text for r in replies] == [f"answer to question {i}" for i in range(1000)]
    assert rows == (1000, 1000), "no answer is stored twice"
    assert counts["failed"] + counts["damaged"] > 250 and counts["orphaned"] == 0
    assert counts["sent"] - lost <= sum(server.asked.values()) <= counts["sent"], "every attempt is in the journal"
