"""The teacher over HTTP: any OpenAI-compatible server, asked concurrently, answered in order, every answer journalled before it is read.

A background thread runs one event loop. Requests come in batches; each batch is looked up in the journal, noted there as sent, asked,
and handed on in order once its answers are on the disk. The official client does the HTTP; its own retries are off, because they
would pay for an answer twice without a trace.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json
import os
import random
import threading
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from speedlit.context import Reply, Request
from speedlit.errors import SpeedlitError
from speedlit.synthesis.journal import Event, Journal, request_key

BATCH = 32  # requests that are looked up, noted and handed on together
IN_A_ROW = 8  # so many requests without a usable answer, one after the other, end the run
FIRST_TRIES = 4  # connection attempts before a server that never answered counts as unreachable
LONGEST_WAIT = 600.0  # seconds; a server that asks for more is given up
PASSING = frozenset({408, 409, 425, 429})


class Answer:
    """What one body says: text, finish reason and token counts; ``fault`` is set where it is no chat completion."""

    __slots__ = ("text", "finish_reason", "tokens_in", "tokens_out", "fault")

    def __init__(self, raw: str) -> None:
        self.text, self.finish_reason, self.tokens_in, self.tokens_out, self.fault = "", "stop", 0, 0, ""
        try:
            body = json.loads(raw)
            usage = body.get("usage") or {}
            self.tokens_in, self.tokens_out = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
            choice = body["choices"][0]
            message = choice["message"]
            self.text = message.get("content") or message.get("refusal") or ""
            self.finish_reason = choice.get("finish_reason") or "stop"
            if not isinstance(self.text, str):
                self.fault = "content_is_no_text"
        except ValueError:
            self.fault = "body_is_no_json"
        except (KeyError, IndexError, TypeError, AttributeError):
            self.fault = "body_has_no_choice"


@dataclass(frozen=True)
class Outcome:
    """How one HTTP attempt ended. ``wait`` is what the server asked for in seconds; ``connected`` is False when nobody listened."""

    status: int = 0
    raw: str = ""
    reason: str = ""
    wait: float | None = None
    connected: bool = True


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


class HTTPBackend:
    """A writer behind an OpenAI-compatible server. The key comes from OPENAI_API_KEY and is stored nowhere.

    Args:
        model: name of the model on the server.
        base_url: such as ``http://127.0.0.1:8000/v1``; None means OPENAI_BASE_URL, else OpenAI itself.
        journal: where every attempt is kept, open or as the path of its file; None keeps nothing (for tries only).
        role: what this server is in the run; part of the cache key in place of the URL, whose port may change.
        concurrency: most requests in flight.
        timeout: seconds after which one attempt is given up, however it drips.
        retries: further attempts after a passing fault.
        backoff: seconds before the first retry; doubled each time, at most 30, with jitter.
        extra: further keys of the request body, such as ``response_format``; part of the cache key.
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
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.url = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        self._own_journal = isinstance(journal, Path)
        self.journal = Journal(journal) if isinstance(journal, Path) else journal
        self.model, self.role, self.extra = model, role, dict(extra or {})
        self.concurrency, self.timeout, self.retries, self.backoff = concurrency, timeout, retries, backoff
        self._key = os.environ.get("OPENAI_API_KEY") or ""
        self._window = max(4, 8 * concurrency // BATCH)
        self._pending: dict[str, asyncio.Future[tuple[Answer, bool, str]]] = {}
        self._events: list[tuple[Event, asyncio.Future[None]]] = []
        self._flushing: asyncio.Task[None] | None = None
        self._answered = False
        self._unanswered = 0
        self._stopped: SpeedlitError | None = None
        self._jitter = random.Random()
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._loop = asyncio.new_event_loop()
        self._gate = Gate(concurrency)
        self._client: Any = None
        self._raw: Any = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="teacher", daemon=True)
        self._thread.start()

    # ---- the caller's side ------------------------------------------------------------------------------------------------------

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Answer every request, in order; up to ``8 * concurrency`` are taken ahead of the one handed out.

        Raises:
            SpeedlitError: the server cannot be reached or refuses this client for good, or the journal cannot be written.
        """
        source = iter(requests)
        self._stopped, self._unanswered = None, 0
        waiting: deque[Future[list[Reply]]] = deque()
        try:
            while True:
                while len(waiting) < self._window and (batch := list(itertools.islice(source, BATCH))):
                    waiting.append(self._submit(self._answer(batch)))
                if not waiting:
                    return
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """Drop what is in flight and free sockets and threads; a journal that was given open stays open."""
        if self._loop.is_closed():
            return
        self._submit(self._shut()).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()
        self._disk.shutdown()
        if self._own_journal and self.journal is not None:
            self.journal.close()

    def _submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    # ---- inside the loop --------------------------------------------------------------------------------------------------------

    async def _shut(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    async def _answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer one batch. Equal requests are asked once: all keys are reserved before the first await."""
        keys = [request_key(self.role, self.model, request, self.extra) for request in requests]
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
        """Bring the answers of reserved keys, from the journal or from the server."""
        try:
            known = await self._on_disk(self.journal.answers, list(requests)) if self.journal and requests else {}
            for key, raw in known.items():
                self._settle(key, (Answer(raw), True, ""))
            missing = {key: request for key, request in requests.items() if key not in known}
            await asyncio.gather(*(self._log(Event(key, "sent")) for key in missing))
            await asyncio.gather(*(self._ask(key, request) for key, request in missing.items()))
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
            future.set_result(result)

    def _reply(self, request: Request, answer: Answer, cached: bool, error: str) -> Reply:
        provenance = {"backend": "http", "role": self.role, "model": self.model}
        return Reply(request.id, request.index, answer.text, answer.finish_reason, answer.tokens_in, answer.tokens_out, cached, error, provenance)

    async def _ask(self, key: str, request: Request) -> None:
        """Ask one request until it has a usable answer, is refused, or the attempts are used up."""
        body = self._body(request)
        for attempt in itertools.count():
            await self._gate.enter()
            outcome, start = Outcome(), time.monotonic()
            try:
                if self._stopped is not None:
                    raise self._stopped
                outcome = await self._attempt(body)
            finally:
                self._gate.leave(outcome.status in (429, 503) or outcome.reason == "timeout")
            answer, paid = Answer(outcome.raw), 200 <= outcome.status < 300
            good = paid and not outcome.reason and not answer.fault
            reason = "" if good else outcome.reason or answer.fault
            refused = 400 <= outcome.status < 500 and outcome.status not in PASSING
            final = good or refused or attempt >= self.retries
            self._stopped = self._stopped or self._fatal(outcome, reason, attempt) or (self._despair(good, reason, outcome) if final else None)
            fate = "answered" if good else "damaged" if paid else "failed"
            await self._log(Event(key, fate, outcome.status, time.monotonic() - start, answer.tokens_in, answer.tokens_out, reason, self._clean(outcome.raw)))
            if self._stopped is not None and not good:
                raise self._stopped
            if final:
                self._settle(key, (answer, False, "") if good else (Answer("{}"), False, reason))
                return
            await asyncio.sleep(self._pause(attempt, outcome.wait))
            await self._log(Event(key, "sent"))

    def _fatal(self, outcome: Outcome, reason: str, attempt: int) -> SpeedlitError | None:
        """The end of the run, where what happened would befall every other request too."""
        tries, at = attempt + 1, f"the teacher at {self.url}"
        if not outcome.connected and tries >= (self.retries + 1 if self._answered else min(FIRST_TRIES, self.retries + 1)):
            return SpeedlitError(f"cannot reach {at} ({reason}): start that server, or set OPENAI_BASE_URL (or teacher.base_url) to one that runs")
        if outcome.status in (401, 403):
            return SpeedlitError(f"{at} refuses this client (status {outcome.status}): put a valid key into OPENAI_API_KEY, or name another server")
        if outcome.status == 404:
            return SpeedlitError(f"{at} knows no model {self.model!r} or no such path (status 404): mend teacher.model or teacher.base_url (OPENAI_BASE_URL)")
        if outcome.status == 402 or reason == "insufficient_quota":
            return SpeedlitError(f"{at} says that the account has no credit left: top it up and start again; nothing that was answered is asked again")
        if outcome.wait is not None and outcome.wait > LONGEST_WAIT:
            return SpeedlitError(f"{at} asks to wait {outcome.wait:.0f} seconds: start again then; nothing that was answered is asked again")
        return None

    def _despair(self, good: bool, reason: str, outcome: Outcome) -> SpeedlitError | None:
        """The end of a run in which nothing works any more, rather than ten thousand refusals one by one."""
        self._answered = self._answered or good
        self._unanswered = 0 if good else self._unanswered + 1
        if self._unanswered < IN_A_ROW:
            return None
        said = f"last: {reason} {' '.join(self._clean(outcome.raw).split())[:200]}".strip()
        return SpeedlitError(f"the teacher at {self.url} gave no usable answer to {IN_A_ROW} requests in a row ({said}): look there, then start again")

    def _pause(self, attempt: int, wait: float | None) -> float:
        own: float = min(self.backoff * 2.0**attempt, 30.0) * self._jitter.uniform(0.5, 1.0)
        return own if wait is None else wait + own * 0.2

    def _body(self, request: Request) -> dict[str, Any]:
        s = request.sampling
        sampling = {"temperature": s.temperature, "top_p": s.top_p, "max_tokens": s.max_tokens, "seed": s.seed}
        body = {"model": self.model, "messages": list(request.messages), **sampling, **self.extra}
        return {key: value for key, value in body.items() if value is not None}

    async def _attempt(self, body: Mapping[str, Any]) -> Outcome:
        """One HTTP exchange under a hard deadline: a body that drips byte by byte counts as late too."""
        import openai

        client = self._open()
        try:
            response = await asyncio.wait_for(client.post("/chat/completions", body=body, cast_to=self._raw), self.timeout)
            return Outcome(response.status_code, response.text)
        except openai.APIStatusError as error:
            raw = error.response.text
            return Outcome(error.status_code, raw, _code(raw) or f"status_{error.status_code}", _retry_after(error.response.headers))
        except (asyncio.TimeoutError, openai.APITimeoutError):
            return Outcome(reason="timeout")
        except openai.APIConnectionError as error:
            cause = error.__cause__
            refused = type(cause).__name__ in ("ConnectError", "UnsupportedProtocol", "LocalProtocolError")
            return Outcome(reason=self._clean(str(cause) or type(cause).__name__) if refused else "connection_lost", connected=not refused)
        except (ValueError, UnicodeError) as error:  # a body that cannot even be decoded
            return Outcome(200, "", f"unreadable_body:{type(error).__name__}")

    def _open(self) -> Any:
        """The official client, made inside the loop. On loopback, proxies of the environment are passed by."""
        if self._client is None:
            import openai

            local = urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")
            http = openai.DefaultAsyncHttpxClient(trust_env=not local)
            self._client = openai.AsyncOpenAI(base_url=self.url, api_key=self._key or "none", max_retries=0, timeout=self.timeout, http_client=http)
            library = next(c for c in type(http).__mro__ if c.__name__ == "AsyncClient").__module__.split(".")[0]  # httpx2, or httpx before openai 3
            self._raw = importlib.import_module(library).Response
        return self._client

    def _clean(self, text: str) -> str:
        """``text`` without the key, should a server echo it."""
        return text.replace(self._key, "[key]") if self._key else text

    # ---- journal: group commits -------------------------------------------------------------------------------------------------

    async def _on_disk(self, function: Any, *args: Any) -> Any:
        return await self._loop.run_in_executor(self._disk, function, *args)

    async def _log(self, event: Event) -> None:
        """Return once the event is on the disk; all that come up meanwhile share the next transaction."""
        if self.journal is None:
            return
        done = self._loop.create_future()
        self._events.append((event, done))
        if self._flushing is None or self._flushing.done():
            self._flushing = self._loop.create_task(self._flush())
        await done

    async def _flush(self) -> None:
        assert self.journal is not None
        while self._events:
            batch, self._events = self._events, []
            failure: SpeedlitError | None = None
            try:
                await self._on_disk(self.journal.append, [event for event, _ in batch])
            except SpeedlitError as error:
                failure = error
            for _, done in batch:
                if not done.done():
                    if failure:
                        done.set_exception(failure)
                    else:
                        done.set_result(None)


def _code(raw: str) -> str:
    """The server's own error code, where it gives one."""
    try:
        error = json.loads(raw).get("error")
    except (ValueError, AttributeError):
        return ""
    if not isinstance(error, dict):
        return ""
    code = error.get("code") or error.get("type")
    if "maximum context length" in str(error.get("message")):
        return "context_length_exceeded"
    return code if isinstance(code, str) else ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from ``retry-after-ms``, or ``retry-after`` in seconds or as a date."""
    try:
        if "retry-after-ms" in headers:
            return max(float(headers["retry-after-ms"]) / 1000, 0.0)
        return max(float(headers["retry-after"]), 0.0) if "retry-after" in headers else None
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None
