"""The budget: hard under concurrency, faults, crashes and several processes; its end says what to do; raising it asks nothing twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from speedlit.context import Request, Sampling
from speedlit.errors import UsageError
from speedlit.synthesis.budget import Account, Budget, BudgetSpent, Price, tariff, worst_case
from speedlit.synthesis.client import HTTPBackend
from speedlit.synthesis.journal import Event, Journal
from tests.synthesis.server import Fault, Server

PRICES = {"m": Price(5.0, 15.0, 0.5)}
MOST = 40  # max_tokens of the requests


def requests(count: int) -> list[Request]:
    return [Request(f"r{i}", [{"role": "user", "content": f"question {i}"}], Sampling(seed=i, max_tokens=MOST)) for i in range(count)]


class Greedy:
    """A teacher that bills as much as it may, and keeps the bill. A share of its answers is spoilt in the ways that are paid, or not."""

    def __init__(self, faults: float = 0.0) -> None:
        self.faults, self.rng, self.bill, self._lock = faults, random.Random(7), Counter(), threading.Lock()

    def __call__(self, body: dict[str, Any], n: int) -> Fault:
        text = body["messages"][-1]["content"]
        tokens_in = len(text)  # a token of a byte each
        if self.rng.random() < self.faults / 2:
            return self.rng.choice([Fault(status=429, body="{}"), Fault(status=503, body="busy")])  # not billed
        with self._lock:
            self.bill.update(calls=1, tokens=tokens_in + MOST)
        if self.rng.random() < self.faults:
            return self.rng.choice([Fault(body='{"choices": [{"mess'), Fault(status=500, body="oops"), Fault("reset")])  # billed, and lost
        usage = {"prompt_tokens": tokens_in, "completion_tokens": MOST}
        message = {"role": "assistant", "content": f"answer to {text}"}
        return Fault(body=json.dumps({"id": uuid.uuid4().hex, "choices": [{"index": 0, "finish_reason": "stop", "message": message}], "usage": usage}))

    @property
    def usd(self) -> float:
        return ((self.bill["tokens"] - self.bill["calls"] * MOST) * 5 + self.bill["calls"] * MOST * 15) / 1e6

    def value(self, name: str) -> float:
        return self.usd if name == "usd" else self.bill[name]


def backend(server: Server, root: Path, caps: dict[str, float], **over: Any) -> tuple[HTTPBackend, Budget]:
    budget = Budget(root, caps, PRICES, root / "journal.sqlite")
    return HTTPBackend("m", server.url, root / "journal.sqlite", **{"concurrency": 64, "timeout": 5.0, "backoff": 0.01, "budget": budget, **over}), budget


CAPS = {"calls": 150, "tokens": 9_000, "usd": 0.1}
WORST = {"calls": 1, "tokens": 300 + MOST, "usd": (300 * 5 + MOST * 15) / 1e6}


@pytest.mark.parametrize("name", CAPS)
def test_a_cap_is_never_passed_at_concurrency_64_with_faults(name: str, tmp_path: Path) -> None:
    """What the server bills stays below the cap, and comes as near to it as one more request at its worst allows."""
    teacher = Greedy(faults=0.2)
    with Server(teacher, delay=0.005) as server:
        client, budget = backend(server, tmp_path, {name: CAPS[name]})
        with pytest.raises(BudgetSpent) as caught:
            list(client.generate(requests(2_000)))
        client.close()
    charged = getattr(budget.account.committed(), name)
    budget.close()
    assert teacher.value(name) <= charged <= CAPS[name] + 1e-9
    assert charged > CAPS[name] - WORST[name], "stopped too early"
    said = str(caught.value)
    assert f"budget.{name}" in said and "of 2,000 requests of this stage are answered" in said and "run the same command" in said
    assert "\n" not in said
    assert budget.account.wasted.calls > 0, "no fault that is paid was met"


def test_raising_the_cap_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    teacher = Greedy()
    with Server(teacher) as server:
        client, budget = backend(server, tmp_path, {"calls": 70})
        with pytest.raises(BudgetSpent, match=r"Raise budget.calls \(to about 200\)"):
            list(client.generate(requests(200)))
        client.close()
        budget.close()
        assert sum(server.asked.values()) == 70
        client, budget = backend(server, tmp_path, {"calls": 200})
        replies = list(client.generate(requests(200)))
        client.close()
        budget.close()
    assert [reply.text for reply in replies] == [f"answer to question {i}" for i in range(200)]
    assert max(server.asked.values()) == 1
    assert sum(server.asked.values()) == 200


SCRIPT = """
import sys
from pathlib import Path
from speedlit.synthesis.budget import Budget, BudgetSpent
from speedlit.synthesis.client import HTTPBackend
from tests.synthesis.test_budget import PRICES, requests
url, root, journal, cap, part = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]
budget = Budget(root, {"calls": cap}, PRICES, root / journal, 5.0)
client = HTTPBackend("m", url, root / journal, concurrency=64, budget=budget)
index, count = map(int, part.split("/"))
try:
    for reply in client.generate(requests(600)[index::count]):
        print(reply.id, flush=True)
except BudgetSpent as error:
    print(error, flush=True)
"""


def child(server: Server, root: Path, cap: int, journal: str = "journal.sqlite", part: str = "0/1") -> subprocess.Popen[str]:
    words = [sys.executable, "-c", SCRIPT, server.url, str(root), journal, str(cap), part]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def test_kill_9_never_lets_the_cap_be_passed(tmp_path: Path) -> None:
    """Requests in flight at a kill are charged at their worst case, so the restarts have less; raised, the run ends with all answers."""
    teacher, rng = Greedy(), random.Random(3)
    with Server(teacher, delay=0.2) as server:  # slow beside the child, so that a kill finds requests in flight
        for _ in range(2):
            process = child(server, tmp_path, 300)
            assert process.stdout is not None
            for _ in range(rng.randint(20, 60)):
                process.stdout.readline()
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
            time.sleep(0.4)  # until the server has served what was on its way
        out, _ = child(server, tmp_path, 300).communicate(timeout=200)
        account = Account(tmp_path, PRICES)
        account.refresh()
        assert teacher.bill["calls"] <= account.committed().calls == 300
        assert "interrupted attempts" in out, "the kills hit nothing in flight"
        account.close()
        journal = Journal(tmp_path / "journal.sqlite")
        answered = journal.counts()["answered"]
        journal.close()
        before = Counter(server.asked)
        out, _ = child(server, tmp_path, 1_000).communicate(timeout=200)
    assert len(out.splitlines()) == 600, out[-500:]
    assert sum(server.asked.values()) - sum(before.values()) == 600 - answered, "an answered request was asked again"


def test_two_processes_share_one_cap(tmp_path: Path) -> None:
    teacher = Greedy()
    with Server(teacher, delay=0.01) as server:
        processes = [child(server, tmp_path, 200, f"journal-0000{i}-of-00002.sqlite", f"{i}/2") for i in range(2)]
        outs = [process.communicate(timeout=200)[0] for process in processes]
    assert all("budget.calls of 200 calls" in out for out in outs)
    assert teacher.bill["calls"] == 200
    assert min(len(out.splitlines()) for out in outs) > 20, "one process took it all"


def test_looking_and_writing_are_one_step_for_all_processes(tmp_path: Path) -> None:
    """Two that look at the same moment must not both find room for the last call."""
    refused: list[Event] = []

    def ask(index: int) -> None:
        journal = Journal(tmp_path / f"journal-0000{index}-of-00002.sqlite")
        budget = Budget(tmp_path, {"calls": 1}, PRICES, journal.path)

        def slowly(events: Any) -> None:
            time.sleep(0.3)
            journal.append(events)

        refused.extend(budget.admit([Event(f"k{index}", "sent", tokens_in=1, tokens_out=1, detail="m")], slowly))
        budget.close()
        journal.close()

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(refused) == 1


def test_the_account_by_hand(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")

    def attempt(key: str, *outcome: Event, model: str = "m") -> None:
        journal.append([Event(key, "sent", tokens_in=100, tokens_out=MOST, detail=model), *outcome])

    attempt("answered", Event("answered", "answered", 200, 1.0, 10, 5))
    attempt("in a batch", Event("in a batch", "answered", 200, 1.0, 10, 5), model=tariff("m", batch=True))
    attempt("no usage", Event("no usage", "answered", 200))
    attempt("damaged, counted", Event("damaged, counted", "damaged", 200, 1.0, 10, 5, "content_is_no_text"))
    attempt("damaged", Event("damaged", "damaged", 200, detail="body_is_no_json"))
    attempt("twice", Event("twice", "damaged", 200, 1.0, 1, 1, "delivered_twice"))
    for status, detail in ((429, "rate"), (503, "busy"), (400, "context_length_exceeded"), (307, "status_307"), (0, "refused by nobody")):
        attempt(detail, Event(detail, "failed", status, detail=detail))
    for status, detail in ((500, "oops"), (0, "timeout"), (0, "connection_lost")):
        attempt(detail, Event(detail, "failed", status, detail=detail))
    attempt("answered", Event("answered", "answered", 200, 1.0, 10, 5))  # a second answer to the same question: paid, of no use
    attempt("orphan")
    attempt("orphan")  # asked again after a crash
    account = Account(tmp_path, PRICES)
    account.refresh()
    whole = (100 * 5 + MOST * 15) / 1e6
    used = (10 * 5 + 5 * 15) / 1e6
    assert (account.answered.calls, account.answered.tokens) == (3, 15 + 15 + 140)
    assert account.answered.usd == pytest.approx(used + used / 2 + whole)
    assert (account.wasted.calls, account.wasted.tokens) == (8, 15 * 2 + 140 * 6)
    assert account.wasted.usd == pytest.approx(2 * used + 6 * whole)
    assert (account.open.calls, account.open.tokens) == (1, 140)
    journal.append([Event("orphan", "answered", 200, 1.0, 10, 5)])
    account.refresh()
    assert account.open.calls == 0
    assert account.answered.calls == 4
    account.close()
    journal.close()


def test_the_worst_case_bounds_the_tokens_of_any_byte_tokenizer() -> None:
    content = "Grüße, 日本語 🙂 \n" * 20
    body = {"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": 30, "response_format": {"type": "json_schema", "schema": "x" * 500}}
    tokens_in, tokens_out = worst_case(body)
    assert tokens_in >= len(content.encode()) + 500, "every byte a token, the schema included"
    assert tokens_out == 30


def test_money_needs_a_price(tmp_path: Path) -> None:
    budget = Budget(tmp_path, {"usd": 1.0}, PRICES)
    written: list[Event] = []
    with pytest.raises(UsageError, match=r"prices has no 'other'"):
        budget.admit([Event("k", "sent", tokens_in=1, tokens_out=1, detail="other")], written.extend)
    assert not written
    budget.close()
