"""What many attempts say about the server as a whole: when to give a request up, when to end the run, and what to say meanwhile."""

from __future__ import annotations

import time

from speedlit.errors import SpeedlitError
from speedlit.synthesis.wire import Outcome

IN_A_ROW = 8  # so many requests given up, one after the other, end the run
FIRST_TRIES = 4  # connection attempts before a server that never answered counts as unreachable
LONGEST_WAIT = 600.0  # seconds; a server that asks for more is given up
PASSING = frozenset({408, 409, 425, 429})
NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
OF_ONE_REQUEST = frozenset({"context_length_exceeded", "content_filter", "content_policy_violation"})  # they say nothing about the others
QUIET, WAITING, AGAIN = 4.0, 30.0, 20.0  # seconds: failures without an answer, answers that take long, and between two lines


class Health:
    """Learns from every attempt.

    Args:
        name: the server's address as it may be shown.
        model: the model that it is asked for.
        retries: further attempts after a passing fault.
        patience: seconds that a server which has answered before may be down.
    """

    def __init__(self, name: str, model: str, retries: int, patience: float) -> None:
        self.at, self.model, self.retries, self.patience = f"the teacher at {name}", model, retries, patience
        self.answered = False
        self.begin()

    def begin(self) -> None:
        """A new row of requests: what went wrong before is forgotten."""
        self._good_at = self._said_at = time.monotonic()
        self._failed = self._given_up = 0
        self._last = ""

    def good(self) -> None:
        """A usable answer came."""
        self.answered, self._good_at, self._failed, self._given_up = True, time.monotonic(), 0, 0

    def bad(self, outcome: Outcome, reason: str) -> None:
        """An attempt gave no usable answer."""
        self._failed += 1
        self._last = f"{reason} {' '.join(outcome.raw.split())[:200]}".strip()

    def blames(self, outcome: Outcome, before: float) -> bool:
        """Whether an attempt counts against its request: not while a server that used to answer gives nobody anything since the failure ``before``."""
        return not self.answered or outcome.paid or self._good_at > before

    def hopeless(self, outcome: Outcome, attempt: int, blamed: int) -> bool:
        """Whether a request is given up after its ``attempt``-th attempt (from 0), ``blamed`` of which count against it."""
        if 400 <= outcome.status < 500 and outcome.status not in PASSING:
            return True
        many = self._failed >= 2 * IN_A_ROW  # attempts of all requests since the last answer: time-outs leave few places, so one waits long for its next
        if outcome.reason == "timeout" and not self.answered and (attempt >= 1 or many):
            return True  # a server that takes requests and has never answered one: seven time-outs of two minutes would show nothing more
        return blamed > self.retries or ((attempt >= self.retries or many) and self.answered and time.monotonic() - self._good_at > self.patience)

    def fatal(self, outcome: Outcome, reason: str, attempt: int, hopeless: bool) -> SpeedlitError | None:
        """The end of the run, where what happened would befall every other request too."""
        status, at = outcome.status, self.at
        if not outcome.connected and "CERTIFICATE" in reason:
            return SpeedlitError(f"{at} has a certificate that is not trusted here ({reason}): name its authority's file in SSL_CERT_FILE, or mend the address")
        if not outcome.connected and (hopeless or (not self.answered and attempt + 1 >= FIRST_TRIES)):
            return SpeedlitError(f"cannot reach {at} ({reason}): start that server, or set OPENAI_BASE_URL (or teacher.base_url) to one that runs")
        if 300 <= status < 400:
            return SpeedlitError(f"{at} sends elsewhere (status {status}): set teacher.base_url (OPENAI_BASE_URL) to where it points, with its path and https")
        if status in (401, 403):
            return SpeedlitError(f"{at} refuses this client (status {status}): put a valid key into OPENAI_API_KEY, or name another server")
        if status == 404:
            return SpeedlitError(f"{at} knows no model {self.model!r} or no such path (status 404): mend teacher.model or teacher.base_url (OPENAI_BASE_URL)")
        if status == 402 or reason in NO_CREDIT:
            return SpeedlitError(f"{at} says that the account has no credit left: top it up and start again; nothing that was answered is asked again")
        if outcome.wait is not None and outcome.wait > LONGEST_WAIT:
            return SpeedlitError(f"{at} asks to wait {outcome.wait:.0f} seconds: start again then; nothing that was answered is asked again")
        return self._despair(reason) if hopeless else None

    def _despair(self, reason: str) -> SpeedlitError | None:
        """The end of a run in which nothing works any more, rather than ten thousand refusals one by one."""
        self._given_up += reason not in OF_ONE_REQUEST
        if self._given_up < IN_A_ROW:
            return None
        return SpeedlitError(f"{self.at} gave no usable answer to {IN_A_ROW} requests in a row (last: {self._last}): look there, then start again")

    def line(self, flying: int) -> str:
        """What to tell a person now; empty where all goes well, or something was said a moment ago."""
        now = time.monotonic()
        silent, said = now - self._good_at, self._said_at > self._good_at
        if silent < (QUIET if self._failed else WAITING) or (said and now - self._said_at < AGAIN) or not (self._failed or flying):
            return ""
        self._said_at = now
        what = f"{self._failed} attempts failed (last: {self._last[:160]}); trying again" if self._failed else f"{flying} requests in flight"
        return f"{self.at}: no usable answer for {silent:.0f} s, {what}"
