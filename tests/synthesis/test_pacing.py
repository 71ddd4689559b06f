"""How fast requests leave, by arithmetic alone; and that the client asks for it."""

from __future__ import annotations

import time

import pytest

from speedlit.context import Request, Sampling
from speedlit.synthesis.client import HTTPBackend
from speedlit.synthesis.pacing import Gate, Guess, Meter, Pace
from tests.synthesis.server import Server, echo


def test_overload_halves_the_requests_in_flight_and_success_raises_them() -> None:
    gate = Gate(16)
    gate.flying = 1
    gate.leave(overloaded=True)
    assert gate.limit == 8
    for _ in range(200):
        gate.flying += 1
        gate.leave(overloaded=False)
    assert gate.limit == 16


def test_no_minute_holds_more_than_the_limit() -> None:
    meter = Meter(30)
    slots = [meter.book(1, now=100.0 + i / 50) for i in range(200)]
    assert slots[0] == 100.0 and slots == sorted(slots)
    assert max(sum(start <= slot < start + 60 for slot in slots) for start in slots) == 30
    assert meter.book(1, now=10_000.0) == 10_000.0, "an idle hour is no debt"


def test_tokens_are_corrected_after_an_answer() -> None:
    meter = Meter(60)  # one a second
    meter.book(20, now=0.0)
    assert meter.book(0, now=0.0) == 20.0
    meter.correct(-15)
    assert meter.book(0, now=0.0) == 5.0
    meter.correct(3)
    assert meter.book(0, now=0.0) == 8.0


def test_a_guess_learns_from_answers() -> None:
    guess = Guess()
    assert guess.tokens(400, 800) == pytest.approx(100 + 800), "before any answer the worst case"
    for _ in range(100):
        guess.learn(letters=300, tokens_in=300, tokens_out=50)  # a script of one token a letter
    assert guess.tokens(300, 800) == pytest.approx(300 + 50, rel=0.02)
    assert guess.tokens(300, 20) == pytest.approx(300 + 20, rel=0.02), "never more than the request allows"


def test_a_pause_of_the_server_holds_everybody() -> None:
    pace = Pace()
    assert pace.left(pace.book(10, 10)[0]) <= 0
    pace.hold(50)
    pace.hold(5)
    assert 49 < pace.left(pace.book(10, 10)[0]) <= 50


@pytest.mark.parametrize("limits", [{"requests_per_minute": 6000}, {"tokens_per_minute": 6000 * 18}])
def test_the_client_keeps_its_distance(limits: dict[str, float]) -> None:
    """A hundred a second, whichever limit says so: sixty cannot be there sooner than in 0.59 s. The server counts 18 tokens a request."""
    with Server(echo) as server:
        client = HTTPBackend("m", server.url, **limits)
        start = time.monotonic()
        requests = [Request(f"r{i}", [{"role": "user", "content": f"question {i}"}], Sampling(max_tokens=7, seed=i)) for i in range(60)]
        assert len(list(client.generate(requests))) == 60
        client.close()
    assert time.monotonic() - start > (0.58 if "requests_per_minute" in limits else 0.3)
