"""How fast requests leave: how many are in flight, how many a minute, and what the server asked for."""

from __future__ import annotations

import asyncio
import time
from collections import deque


class Gate:
    """How many requests may be in flight: half after a sign of overload, one more for each full round that went well."""

    def __init__(self, top: int) -> None:
        self.top, self.limit, self.flying = top, float(top), 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._last_cut = 0.0

    async def enter(self) -> None:
        """Wait for a free place."""
        while self.flying >= int(self.limit):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        self.flying += 1

    def leave(self, overloaded: bool) -> None:
        """Free a place and learn from how it went. Cuts come at most once a second: those in flight at one overload all report it."""
        self.flying -= 1
        if not overloaded:
            self.limit = min(self.limit + 1 / self.limit, self.top)
        elif time.monotonic() - self._last_cut > 1:
            self._last_cut = time.monotonic()
            self.limit = max(self.limit / 2, 1.0)
        free = int(self.limit) - self.flying
        while free > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1


class Meter:
    """At most ``per_minute`` units a minute, evenly spread, so that no shorter window of the server's sees a burst."""

    def __init__(self, per_minute: float) -> None:
        self._step, self._next = 60.0 / per_minute, 0.0

    def book(self, units: float, now: float) -> float:
        """Take ``units``; returns the time from which they may be used."""
        slot = max(self._next, now)
        self._next = slot + units * self._step
        return slot

    def correct(self, units: float) -> None:
        """``units`` more (or, negative, fewer) were used than booked."""
        self._next += units * self._step


class Guess:
    """Tokens of a request before it is sent: letters by the ratio seen so far, the answer by the mean of those seen."""

    def __init__(self) -> None:
        self._letters, self._tokens_in = 400.0, 100.0  # four letters a token, until answers say otherwise
        self._answers, self._tokens_out = 0, 0

    def tokens(self, letters: int, most: int) -> float:
        """Of a prompt of ``letters`` and an answer of ``most`` tokens or fewer."""
        answer = min(self._tokens_out / self._answers, most) if self._answers else most
        return letters * self._tokens_in / self._letters + answer

    def learn(self, letters: int, tokens_in: int, tokens_out: int) -> None:
        """From one answer."""
        self._letters, self._tokens_in = self._letters + letters, self._tokens_in + tokens_in
        self._answers, self._tokens_out = self._answers + 1, self._tokens_out + tokens_out


class Pace:
    """When the next request may leave.

    Args:
        requests: a minute; None: no limit.
        tokens: a minute, prompts and answers together; None: no limit.
    """

    def __init__(self, requests: float | None = None, tokens: float | None = None) -> None:
        self._requests, self._tokens = Meter(requests) if requests else None, Meter(tokens) if tokens else None
        self._guess, self._closed_until = Guess(), 0.0

    def book(self, letters: int, most: int) -> tuple[float, float]:
        """A slot for a request: when it may leave, and the tokens booked for it."""
        now, tokens = time.monotonic(), 0.0
        slot = self._requests.book(1, now) if self._requests else 0.0
        if self._tokens:
            tokens = self._guess.tokens(letters, most)
            slot = max(slot, self._tokens.book(tokens, now))
        return slot, tokens

    def left(self, slot: float) -> float:
        """Seconds until a slot, or until the server's pause is over."""
        return max(slot, self._closed_until) - time.monotonic()

    def settle(self, booked: float, letters: int, tokens_in: int, tokens_out: int) -> None:
        """Put what was used in the place of what was booked; an attempt without an answer used nothing."""
        if self._tokens:
            self._tokens.correct(tokens_in + tokens_out - booked)
            if tokens_in:
                self._guess.learn(letters, tokens_in, tokens_out)

    def hold(self, seconds: float) -> None:
        """Nobody leaves for so long: the server said so to one, and would say it to all."""
        self._closed_until = max(self._closed_until, time.monotonic() + seconds)
