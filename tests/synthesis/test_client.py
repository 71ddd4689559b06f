"""The client against a real server: order, single faults, permanent errors, trouble that is told, addresses and keys."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from speedlit.context import Request, Sampling
from speedlit.errors import SpeedlitError, UsageError
from speedlit.synthesis import health
from speedlit.synthesis.client import HTTPBackend
from speedlit.synthesis.journal import Journal, request_key
from speedlit.synthesis.wire import Answer
from tests.synthesis.server import CLEAN, FAULTS, Fault, Server, completion, echo

KEY = "sk-very-secret-0123456789"


def requests(count: int, start: int = 0) -> list[Request]:
    return [Request(f"r{i}", [{"role": "user", "content": f"question {i}"}], Sampling(seed=i)) for i in range(start, start + count)]


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


@pytest.mark.parametrize("name", [name for name in FAULTS if name not in CLEAN])
def test_a_passing_fault_is_asked_again(name: str, tmp_path: Path) -> None:
    def answer(body: dict, n: int) -> str | Fault:
        return FAULTS[name]("cut") if n == 0 and body["messages"][-1]["content"].endswith("1") else echo(body, n)

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
    fault = FAULTS[name]("")
    assert counts["damaged"] == (2 if fault.how == "status" and fault.status == 200 else 0)


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
    "not allowed": (Fault(status=403, body="{}"), "OPENAI_API_KEY"),
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


def test_an_answer_that_is_delivered_twice_is_not_the_answer_to_the_next_request(tmp_path: Path) -> None:
    def answer(body: dict, n: int) -> str | Fault:
        return FAULTS["delivered twice"](echo(body, n)) if body["messages"][-1]["content"].endswith("0") else echo(body, n)

    with Server(answer) as server:
        journal = Journal(tmp_path / "journal.sqlite")
        client = backend(server, journal, concurrency=2)
        replies = list(client.generate(requests(60)))
        client.close()
        counts = journal.counts()
        journal.close()
    assert [r.text for r in replies] == [f"answer to question {i}" for i in range(60)]
    assert (counts["answered"], counts["sent"]) == (60, sum(server.asked.values()))
    assert 1 <= counts["damaged"] == sum(server.asked.values()) - 60 <= 6


def test_the_same_body_again_is_an_answer_all_the_same() -> None:
    """A server of few words, without ids: what looks delivered twice is asked again once, then believed."""
    with Server(lambda body, n: Fault(body='{"choices": [{"message": {"content": "yes"}}]}')) as server:
        client = backend(server, concurrency=1)
        assert [r.text for r in client.generate(requests(6))] == ["yes"] * 6
        client.close()
    assert max(server.asked.values()) == 2


def test_too_long_prompts_are_rejected_one_by_one_however_many() -> None:
    refusal = Fault(status=400, body='{"error": {"type": "BadRequestError", "message": "This model\'s maximum context length is 512 tokens"}}')
    with Server(lambda body, n: refusal if n or int(body["messages"][-1]["content"].split()[1]) < 30 else echo(body, n)) as server:
        client = backend(server)
        replies = list(client.generate(requests(40)))
        client.close()
    assert [r.error for r in replies] == ["context_length_exceeded"] * 30 + [""] * 10
    assert max(server.asked.values()) == 1


def test_lasting_trouble_is_told_at_once_and_then_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "QUIET", 0.2)
    lines: list[str] = []
    well = time.monotonic() + 1.5

    def answer(body: dict, n: int) -> str | Fault:
        return Fault(status=500, body="the disk of\nthe server is full") if time.monotonic() < well else echo(body, n)

    with Server(answer) as server:
        client = backend(server, retries=20, backoff=0.05, say=lines.append)
        assert len(list(client.generate(requests(8)))) == 8
        client.close()
    assert len(lines) == 1, "one line, though every one of many attempts failed for more than a second"
    assert server.url in lines[0] and "status_500 the disk of the server is full" in lines[0] and "trying again" in lines[0]


def test_a_server_that_fails_for_ever_ends_the_run_and_says_why() -> None:
    with Server(lambda body, n: Fault(status=500, body="oops")) as server:
        client = backend(server, retries=2)
        with pytest.raises(SpeedlitError, match="8 requests in a row.*status_500 oops"):
            list(client.generate(requests(1000)))
        client.close()
    assert len(server.asked) <= 128 and max(server.asked.values()) == 3


def test_a_server_that_takes_requests_and_never_answers_is_left_soon() -> None:
    with Server(lambda body, n: Fault("hang")) as server:
        client = backend(server, timeout=0.2)
        with pytest.raises(SpeedlitError, match=r"8 requests in a row \(last: timeout\)"):
            list(client.generate(requests(300)))
        client.close()
    assert max(server.asked.values()) <= 2 and sum(server.asked.values()) <= 40


@pytest.mark.parametrize("patience", [30.0, 0.2])
def test_a_server_that_worked_may_be_down_for_a_while(patience: float) -> None:
    """Each request has three attempts, and is given more while nobody gets an answer; but not for longer than the patience."""
    failed = Counter()

    def answer(body: dict, n: int) -> str | Fault:
        text = body["messages"][-1]["content"]
        if int(text.split()[1]) < 20 or (patience > 10 and failed.total() >= 180):
            return echo(body, n)
        failed[text] += 1
        return Fault(status=502, body="bad gateway")

    with Server(answer) as server:
        client = backend(server, retries=2, backoff=0.02, patience=patience)
        assert all(r.text for r in client.generate(requests(20)))
        if patience > 10:
            assert not any(r.error for r in client.generate(requests(40, 20)))
            assert max(failed.values()) > 3
        else:
            with pytest.raises(SpeedlitError, match="bad gateway"):
                list(client.generate(requests(40, 20)))
        client.close()


def test_what_is_in_flight_when_the_run_ends_is_stored(tmp_path: Path) -> None:
    def answer(body: dict, n: int) -> str | Fault:
        if body["messages"][-1]["content"] == "question 0":
            return Fault(status=401, body="{}")
        time.sleep(0.05)  # all others come after the refusal
        return echo(body, n)

    with Server(answer) as server:
        journal = Journal(tmp_path / "journal.sqlite")
        client = backend(server, journal)
        with pytest.raises(SpeedlitError, match="OPENAI_API_KEY"):
            list(client.generate(requests(100)))
        client.close()
        counts = journal.counts()
        journal.close()
    assert counts["orphaned"] == 0 and counts["answered"] == sum(server.answered.values()) >= 1


def test_an_azure_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Server(echo) as server:
        address = server.url.removesuffix("/v1") + "/openai/deployments/four?api-version=2024-06-01"
        client = HTTPBackend("m", address, backoff=0.01)
        assert next(iter(client.generate(requests(1)))).text == "answer to question 0"
        client.close()
    assert server.heads.startswith("POST /openai/deployments/four/chat/completions?api-version=2024-06-01 ")
    assert f"api-key: {KEY}" in server.heads and "authorization" not in server.heads.lower()


def test_the_key_may_stand_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY_FILE", str(tmp_path / "key"))
    with Server(echo) as server:
        with pytest.raises(UsageError, match="OPENAI_API_KEY_FILE.*No such file"):
            backend(server)
        (tmp_path / "key").write_text("two words\n")
        with pytest.raises(UsageError, match="OPENAI_API_KEY_FILE"):
            backend(server)
        (tmp_path / "key").write_text(KEY + "\n")
        client = backend(server)
        list(client.generate(requests(1)))
        client.close()
    assert f"Bearer {KEY}\r\n" in server.heads


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("localhost:8000/v1", "http://host:port/v1"),
        ("http://[::1/v1", "no address"),
        (f"https://me:{KEY}@host/v1", "keys stand in OPENAI_API_KEY"),
        (f"me:{KEY}@[host/v1", "no address"),
    ],
)
def test_an_address_that_is_none(address: str, words: str) -> None:
    with pytest.raises(UsageError, match="teacher.base_url") as caught:
        HTTPBackend("m", address)
    assert words in str(caught.value) and KEY not in str(caught.value)


def test_a_redirect_takes_the_key_nowhere() -> None:
    with Server(echo) as elsewhere, Server(lambda body, n: Fault(status=307, headers={"location": elsewhere.url + "/chat/completions"})) as server:
        client = backend(server)
        with pytest.raises(SpeedlitError, match="sends elsewhere.*teacher.base_url"):
            list(client.generate(requests(1)))
        client.close()
    assert not elsewhere.asked


def test_a_placeholder_key_is_no_secret_to_be_cut_out_of_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "answer")
    with Server(echo) as server:
        client = backend(server)
        assert next(iter(client.generate(requests(1)))).text == "answer to question 0"
        client.close()


def test_half_a_surrogate_pair_can_be_written_to_a_file() -> None:
    assert Answer(completion("x\ud83d y \U0001f600")).text == "x\ufffd y \U0001f600"


def test_the_key_of_an_answer() -> None:
    base = Request("a", [{"role": "user", "content": "x"}], Sampling(seed=1))
    assert request_key("teacher", "m", base) == request_key("teacher", "m", Request("other id", base.messages, base.sampling))
    others = [
        Request("a", [{"role": "user", "content": "y"}], base.sampling), Request("a", base.messages, Sampling(seed=2)),
        Request("a", base.messages, Sampling(temperature=0.5, seed=1)), Request("a", base.messages, base.sampling, index=1),
    ]  # fmt: skip
    keys = {request_key("teacher", "m", r) for r in [base, *others]} | {request_key("judge", "m", base), request_key("teacher", "n", base)}
    assert len(keys) == 7
