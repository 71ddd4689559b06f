"""The teacher over HTTP: any OpenAI-compatible server, asked concurrently, answered in order, every answer journalled before it is read.

A background thread runs one event loop. Requests come in batches; each batch is looked up in the journal, asked, and handed on in
order once its answers are on the disk. ``wire.py`` does one exchange, ``pacing.py`` says when it may start, ``health.py`` what many of
them mean, ``commits.py`` writes them down.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_all
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speedlit.context import Reply, Request
from speedlit.errors import SpeedlitError
from speedlit.synthesis.budget import Budget, tariff, worst_case
from speedlit.synthesis.commits import Commits
from speedlit.synthesis.health import Health
from speedlit.synthesis.journal import Event, Journal, request_key
from speedlit.synthesis.pacing import Gate, Pace
from speedlit.synthesis.plugged import Plugged
from speedlit.synthesis.wire import SECRET, Answer, Endpoint, Outcome, Wire, chat_body

BATCH = 32  # requests that are looked up and handed on together


@dataclass(frozen=True)
class Attempt:
    """One exchange and what it gave; ``reason`` is empty where the answer is usable."""

    outcome: Outcome
    answer: Answer
    reason: str


class HTTPBackend:
    """A writer behind an OpenAI-compatible server. The key comes from OPENAI_API_KEY, or OPENAI_API_KEY_FILE, and is stored nowhere.

    Args:
        model: name of the model on the server.
        base_url: such as ``http://127.0.0.1:8000/v1``, a query such as ``?api-version=...`` included; None means OPENAI_BASE_URL, else OpenAI itself.
        journal: where every attempt is kept, open or as the path of its file; None keeps nothing (for tries only).
        role: what this server is in the run; part of the cache key in place of the URL, whose port may change.
        concurrency: most requests in flight.
        timeout: seconds after which one attempt is given up, however it drips.
        retries: further attempts after a passing fault.
        backoff: seconds before the first retry; doubled each time, at most 30, with jitter.
        patience: seconds that a server which has answered before may be down before requests are given up and the run ends.
        requests_per_minute: most attempts a minute; None: no limit.
        tokens_per_minute: most tokens a minute, guessed before an answer and corrected after it; None: no limit.
        extra: further keys of the request body, such as ``response_format``; part of the cache key.
        budget: holds requests back that might pass it; needs a journal. None: no bound.
        say: takes one plain line about trouble that lasts; None prints to standard error.
        wire: what a request goes through, in place of HTTP to ``base_url``.

    Raises:
        UsageError: the address or the key can be none.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        journal: Journal | Path | None = None,
        role: str = "teacher",
        concurrency: int = 32,
        timeout: float = 120.0,
        retries: int = 6,
        backoff: float = 0.5,
        patience: float = 120.0,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        extra: Mapping[str, Any] | None = None,
        budget: Budget | None = None,
        say: Callable[[str], None] | None = None,
        wire: Wire | Plugged | None = None,
    ) -> None:
        self.model, self.role, self.extra = model, role, dict(extra or {})
        self.timeout, self.backoff = timeout, backoff
        self._wire = wire or Wire(Endpoint(base_url), timeout)
        self.name = self._wire.name
        self._own_journal = isinstance(journal, Path)
        self.journal = Journal(journal) if isinstance(journal, Path) else journal
        self._done = 0
        self._total: int | None = None
        self._commits = Commits(self.journal, budget, lambda: (self._done, self._total)) if self.journal else None
        self._gate = Gate(concurrency)
        self._pace, self._paced = Pace(requests_per_minute, tokens_per_minute), bool(requests_per_minute or tokens_per_minute)
        self._health = Health(self.name, model, retries, patience)
        self._say = say or _print
        self._window = max(4, 8 * concurrency // BATCH)
        self._pending: dict[str, asyncio.Future[tuple[Answer, bool, str]]] = {}
        self._stopped: SpeedlitError | None = None
        self._halted = asyncio.Event()
        self._jitter = random.Random()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="teacher", daemon=True)
        self._thread.start()

    # ---- the caller's side ------------------------------------------------------------------------------------------------------

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Answer every request, in order; up to ``8 * concurrency`` are taken ahead of the one handed out.

        Raises:
            SpeedlitError: the server cannot be reached or refuses this client for good, or the journal cannot be written. What was in
                flight is stored before it is raised.
        """
        source, self._total = iter(requests), len(requests) if isinstance(requests, Sequence) else None
        waiting: deque[Future[list[Reply]]] = deque()
        self._submit(self._begin()).result()
        watch = self._submit(self._watch())
        try:
            while True:
                while len(waiting) < self._window and (batch := list(itertools.islice(source, BATCH))):
                    waiting.append(self._submit(self._answer(batch)))
                if not waiting:
                    return
                yield from waiting.popleft().result()
        except SpeedlitError:
            wait_for_all(waiting, timeout=self.timeout)  # what flies may be paid: let it land and be stored
            raise
        finally:
            for future in (watch, *waiting):
                future.cancel()

    def close(self) -> None:
        """Drop what is in flight and free sockets and threads; a journal that was given open stays open."""
        if self._loop.is_closed():
            return
        self._submit(self._shut()).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()
        if self._commits is not None:
            self._commits.close()
        if self._own_journal and self.journal is not None:
            self.journal.close()

    def _submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    # ---- inside the loop --------------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        self._stopped, self._done = None, 0
        self._halted.clear()
        self._health.begin()

    async def _watch(self) -> None:
        """Say so when nothing comes."""
        while True:
            await asyncio.sleep(0.5)
            if line := self._health.line(self._wire.flying):
                self._say(line)

    async def _shut(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._wire.close()

    async def _answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer one batch. Equal requests are asked once: all keys are reserved before the first await."""
        keys = [request_key(self.role + self._wire.mark, self.model, request, self.extra) for request in requests]
        mine = {}
        for key, request in zip(keys, requests, strict=True):
            if key not in self._pending:
                self._pending[key] = self._loop.create_future()
                mine[key] = request
        futures = [self._pending[key] for key in keys]
        asking = asyncio.ensure_future(self._fulfil(mine))
        try:
            await asking
            results = await asyncio.gather(*map(asyncio.shield, futures))
        finally:
            asking.cancel()
        first = set(mine)
        replies = []
        for key, request, (answer, cached, error) in zip(keys, requests, results, strict=True):
            replies.append(self._reply(request, answer, cached or key not in first, error))
            first.discard(key)
        return replies

    async def _fulfil(self, requests: Mapping[str, Request]) -> None:
        """Bring the answers of reserved keys, from the journal or from the server. Ends when all of them have ended, also after a failure."""
        try:
            known = await self._commits.answers(requests) if self._commits and requests else {}
            for key, raw in known.items():
                self._settle(key, (Answer(raw), True, ""))
            asked = await asyncio.gather(*(self._ask(key, request) for key, request in requests.items() if key not in known), return_exceptions=True)
            for failure in filter(None, asked):
                raise failure
        except SpeedlitError as error:
            for key in requests:
                self._settle(key, error)
        finally:  # whoever shares a key must not wait for ever
            for key in requests:
                self._settle(key, SpeedlitError("the run was stopped"))

    def _settle(self, key: str, result: tuple[Answer, bool, str] | SpeedlitError) -> None:
        future = self._pending.pop(key, None)
        if future is None or future.done():
            return
        if isinstance(result, SpeedlitError):
            future.set_exception(result)
            future.exception()  # whoever waits gets it; nobody waiting is no accident
        else:
            self._done += not result[2]
            future.set_result(result)

    def _reply(self, request: Request, answer: Answer, cached: bool, error: str) -> Reply:
        provenance, text = {"backend": self._wire.kind, "role": self.role, "model": self.model}, self._wire.clean(answer.text, SECRET)
        return Reply(request.id, request.index, text, answer.finish_reason, answer.tokens_in, answer.tokens_out, cached, error, provenance)

    async def _ask(self, key: str, request: Request) -> None:
        """Ask one request until it has a usable answer, is refused, or the attempts are used up."""
        body, doubted, blamed, before = chat_body(self.model, request, self.extra), "", 0, 0.0
        for attempt in itertools.count():
            tried = await self._attempt(key, body, doubted)
            outcome, reason = tried.outcome, tried.reason
            if not reason:
                self._health.good()
                self._settle(key, (tried.answer, False, ""))
                return
            blamed, before = blamed + self._health.blames(outcome, before), time.monotonic()
            self._health.bad(outcome, reason)
            hopeless = self._health.hopeless(outcome, attempt, blamed)
            if end := self._health.fatal(outcome, reason, attempt, hopeless):
                self._halt(end)
            self._check()
            if hopeless:
                self._settle(key, (Answer("{}"), False, reason))
                return
            doubted = outcome.raw if outcome.reason == "delivered_twice" else ""
            if outcome.overloaded and outcome.wait:
                self._pace.hold(outcome.wait)
            await self._rest(self._pause(attempt, outcome.wait))

    async def _attempt(self, key: str, body: Mapping[str, Any], doubted: str) -> Attempt:
        """One exchange: noted before it leaves, stored before anybody reads it. It keeps its place until then, so no more are ever unaccounted for."""
        await self._gate.enter()
        outcome, letters = Outcome(), _letters(body) if self._paced else 0
        try:
            slot, booked = self._pace.book(letters, body.get("max_tokens") or 0)
            while (left := self._pace.left(slot)) > 0:
                await self._rest(left if self._paced else left * self._jitter.uniform(1.0, 1.1))  # a pause for all ends for one after the other
            self._check()
            tokens_in, tokens_out = worst_case(body)
            await self._note(Event(key, "sent", tokens_in=tokens_in, tokens_out=tokens_out, detail=tariff(self.model)))
            outcome = await self._wire.send(body, doubted)
            answer = Answer(outcome.raw)
            self._pace.settle(booked, letters, answer.tokens_in, answer.tokens_out)
            reason = (answer.fault or outcome.reason) if outcome.paid else outcome.reason or f"status_{outcome.status}"
            fate = "failed" if not outcome.paid else "damaged" if reason else "answered"
            await self._note(Event(key, fate, outcome.status, outcome.seconds, answer.tokens_in, answer.tokens_out, reason, outcome.raw))
        finally:
            self._gate.leave(outcome.overloaded)
            if self._commits is not None:
                self._commits.left(key)
        return Attempt(outcome, answer, reason)

    async def _note(self, event: Event) -> None:
        if self._commits is None:
            return
        try:
            await self._commits.write(event)
        except SpeedlitError as error:
            self._halt(error)
            raise

    def _halt(self, error: SpeedlitError) -> None:
        """No request leaves any more; those that rest are woken."""
        self._stopped = self._stopped or error
        self._halted.set()

    def _check(self) -> None:
        if self._stopped is not None:
            raise self._stopped

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._halted.wait(), seconds)
        self._check()

    def _pause(self, attempt: int, wait: float | None) -> float:
        own: float = min(self.backoff * 2.0**attempt, 30.0) * self._jitter.uniform(0.5, 1.0)
        return own if wait is None else wait + own * 0.2


def _letters(body: Mapping[str, Any]) -> int:
    return sum(len(str(message.get("content"))) for message in body["messages"])


def _print(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)
