"""The teacher by the Batch API: files of requests are handed in, and their answers are collected hours later at a lower price.

The interface is the live client's, and so are the journal and the keys: what was answered in one mode is not asked in the other. What
has no usable answer when a batch ends (expired, failed, damaged) goes into the next one. Every step is on the disk before the step
that depends on it (``batchbook.py``), so a run may be stopped, or killed, and started again at any moment: batches that are under way
are waited for, not made anew.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from speedlit.context import Reply, Request
from speedlit.errors import SpeedlitError
from speedlit.files import remove
from speedlit.synthesis.batchbook import Book, hold, line_of, rows_after
from speedlit.synthesis.batchwire import BatchWire, Down, Refused
from speedlit.synthesis.budget import Budget, tariff, worst_case
from speedlit.synthesis.health import PASSING, Health
from speedlit.synthesis.journal import Event, Journal, request_key
from speedlit.synthesis.wire import SECRET, Answer, Endpoint, Outcome, chat_body, error_code

ENDED = ("completed", "failed", "expired", "cancelled")
FULL = "token_limit_exceeded"  # the account's queue has no room for a batch of this size now
MOST_BYTES = 190_000_000  # of one file; OpenAI takes 200 MB
LOOKUP = 512  # keys looked up together
ROWS = 512  # answers written together


class BatchBackend:
    """A writer behind the Batch API of an OpenAI-compatible server.

    Args:
        model: name of the model on the server.
        base_url: such as ``https://api.openai.com/v1``; None means OPENAI_BASE_URL, else OpenAI itself.
        journal: where every attempt is kept, open or as the path of its file.
        role: what this server is in the run; part of the cache key.
        poll: seconds between two looks at the batches under way.
        requests: most requests in one batch (OpenAI takes 50,000).
        timeout: seconds for one call.
        retries: further batches for a request without a usable answer, and further attempts of a call.
        backoff: seconds before the first retry of a call.
        patience: seconds that the server may be down while batches are under way.
        budget: what may be spent; None: no caps.
        extra: further keys of the request body; part of the cache key.
        say: takes one plain line when a batch moves on; None prints to standard error.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None,
        journal: Journal | Path,
        role: str = "teacher",
        poll: float = 60.0,
        requests: int = 20_000,
        timeout: float = 120.0,
        retries: int = 6,
        backoff: float = 0.5,
        patience: float = 600.0,
        budget: Budget | None = None,
        extra: Mapping[str, Any] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.model, self.role, self.extra = model, role, dict(extra or {})
        self.poll, self.requests, self.retries, self.patience = poll, requests, retries, patience
        endpoint = Endpoint(base_url)
        self.name = endpoint.name
        self._own_journal = isinstance(journal, Path)
        self.journal = Journal(journal) if isinstance(journal, Path) else journal
        self._budget, self._clean = budget, endpoint.clean
        self._wire = BatchWire(endpoint, timeout, retries, backoff)
        self._say = say or (lambda text: print(f"  {text}", file=sys.stderr, flush=True))
        self._root = self.journal.path.parent / "batches"
        self._locks: dict[Path, IO[str]] = {}
        self._journals: dict[Path, Journal] = {}

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Answer every request, in order, once all of them are answered or given up.

        Raises:
            SpeedlitError: the server refuses or cannot be reached, the budget or the disk has no room; batches under way are kept.
        """
        wanted = list(requests)
        keys = [request_key(self.role, self.model, request, self.extra) for request in wanted]
        asked: dict[str, Request] = {}
        for key, request in zip(keys, wanted, strict=True):
            asked.setdefault(key, request)
        missing = self._missing(asked)
        fresh, errors = set(missing), self._fulfil(missing, len(asked)) if missing else {}
        for start in range(0, len(keys), LOOKUP):
            block = list(zip(keys[start : start + LOOKUP], wanted[start : start + LOOKUP], strict=True))
            found = self.journal.answers(key for key, _ in block)
            for key, request in block:
                answer, error = (Answer(found[key]), "") if key in found else (Answer("{}"), errors[key])
                yield self._reply(request, answer, key not in fresh, error)
                fresh.discard(key)

    def close(self) -> None:
        """Free sockets and locks; batches at the server go on, and a journal that was given open stays open."""
        self._wire.close()
        for lock in self._locks.values():
            lock.close()
        for journal in self._journals.values():
            journal.close()
        self._locks.clear()
        self._journals.clear()
        if self._own_journal:
            self.journal.close()

    def _reply(self, request: Request, answer: Answer, cached: bool, error: str) -> Reply:
        provenance, text = {"backend": "http", "role": self.role, "model": self.model}, self._clean(answer.text, SECRET)
        return Reply(request.id, request.index, text, answer.finish_reason, answer.tokens_in, answer.tokens_out, cached, error, provenance)

    def _missing(self, asked: Mapping[str, Request]) -> dict[str, Request]:
        """The requests that the journals have no answer to."""
        keys, known = list(asked), set[str]()
        for start in range(0, len(keys), LOOKUP):
            known |= self.journal.answers(keys[start : start + LOOKUP]).keys()
        return {key: request for key, request in asked.items() if key not in known}

    # ---- rounds -----------------------------------------------------------------------------------------------------------------

    def _fulfil(self, missing: Mapping[str, Request], total: int) -> dict[str, str]:
        """Hand in batches until every request is answered or given up; returns why, for those given up."""
        left, errors, tries = dict(missing), dict[str, str](), Counter[str]()
        health = Health(self.name, self.model, self.retries, 0.0)
        while left:
            books = self._under_way(left)
            covered = {key for book in books for key in book.keys}
            books += self._plan({key: request for key, request in left.items() if key not in covered})
            refused = self._send(books)
            under_way = [book for book in books if book.state == "created"]
            if not under_way and refused is not None:
                self._wait_for_others(refused, total - len(left), total)
            reasons = self._await(under_way, health)
            tries.update(list(reasons))
            for key, (reason, final) in reasons.items():
                if key in left and (final or tries[key] > self.retries):
                    errors[key] = reason
                    del left[key]
            left = self._missing(left)
        return errors

    def _wait_for_others(self, refused: Event, done: int, total: int) -> None:
        """Nothing of ours is in flight and the budget has no room: wait where other processes may still leave some.

        Raises:
            BudgetSpent: they will not.
        """
        assert self._budget is not None
        if not self._budget.others_may_settle(refused):
            raise self._budget.refusal(refused, done, total)
        time.sleep(self.poll)

    def _under_way(self, left: Mapping[str, Request]) -> list[Book]:
        """Batches of earlier processes that answer some of ``left``. Those that answer nothing wanted are withdrawn where they are not made yet."""
        found = []
        places = {self._root / self.journal.path.stem, *(path for path in self._root.glob("*") if path.is_dir())}
        for place in sorted(places):
            if not self._held(place):
                continue  # a living process sees to these
            for book in Book.opened(place):
                if any(key in left for key in book.keys):
                    found.append(book)
                elif book.state in ("planned", "sent", "uploaded"):
                    self._withdraw(book, "withdrawn")
        return found

    def _held(self, place: Path) -> bool:
        if place not in self._locks:
            lock = hold(place)
            if lock is None and place.name == self.journal.path.stem:
                raise SpeedlitError(f"another process hands in the batches of {place}: let it end first")
            if lock is None:
                return False
            self._locks[place] = lock
        return True

    def _plan(self, requests: Mapping[str, Request]) -> list[Book]:
        """Write requests down as batches of equal size, none larger than the server takes."""
        if not requests:
            return []
        size = math.ceil(len(requests) / math.ceil(len(requests) / self.requests))
        books, lines, length = [], dict[str, dict[str, Any]](), 0
        place = self._root / self.journal.path.stem
        for key, request in requests.items():
            body = chat_body(self.model, request, self.extra)
            more = len(line_of(key, body).encode())
            if lines and (len(lines) == size or length + more > MOST_BYTES):
                books.append(Book.plan(place, self.journal.path, lines))
                lines, length = {}, 0
            lines[key] = body
            length += more
        return [*books, Book.plan(place, self.journal.path, lines)]

    # ---- handing in -------------------------------------------------------------------------------------------------------------

    def _send(self, books: Iterable[Book]) -> Event | None:
        """Bring batches to the server; returns the first row that the budget refused, if any."""
        refused: Event | None = None
        for book in books:
            if book.state == "planned":
                refused = self._admit(book, refused)
                if not book.keys:
                    book.done()
                    continue
                book.to("sent")
            if book.state == "sent":
                book.to("uploaded", file=self._wire.upload(book.lines, book.name))
            if book.state in ("uploaded", "creating"):
                self._create(book)
        return refused

    def _admit(self, book: Book, refused: Event | None) -> Event | None:
        """Write a ``sent`` row for each request of a batch, charged at its worst case; what the budget refuses leaves the batch.

        Args:
            refused: a row that was refused before: nothing overtakes it.

        Returns:
            The first row refused, if any.
        """
        noted = {key for key, event in rows_after(self._journal(book).path, book.after) if event == "sent"}
        rows = []
        for key, body in book.bodies():
            if key not in noted:
                tokens_in, tokens_out = worst_case(body)
                rows.append(Event(key, "sent", tokens_in=tokens_in, tokens_out=tokens_out, detail=tariff(self.model, batch=True)))
        left_out = rows if refused is not None else self._write(rows, self._journal(book))
        if left_out:
            out = {event.key for event in left_out}
            book.keep(key for key in book.keys if key not in out)
        return refused or next(iter(left_out), None)

    def _write(self, rows: list[Event], journal: Journal) -> list[Event]:
        if self._budget is not None:
            return self._budget.admit(rows, journal.append)
        journal.append(rows)
        return []

    def _create(self, book: Book) -> None:
        """Make the batch at the server, or find the one that was made while nobody could write it down."""
        again = book.state == "creating"
        found = self._wire.find(book.name) if again else None
        if found is None:
            book.to("creating")
            try:
                found = self._wire.create(book.file, book.name)
            except Refused:
                if again:
                    book.to("sent")  # nothing was made then and now; the file may have gone, so it is uploaded anew next time
                raise
        book.to("created", batch=str(found["id"]))
        self._say(f"batch {book.batch}: {len(book.keys)} requests handed in; this command may be stopped and started again meanwhile")

    # ---- collecting -------------------------------------------------------------------------------------------------------------

    def _await(self, books: Iterable[Book], health: Health) -> dict[str, tuple[str, bool]]:
        """Wait for batches and put their answers into the journal.

        Returns:
            For each request without a usable answer the reason, and whether asking again is of no use.
        """
        waiting, reasons, said = list(books), dict[str, tuple[str, bool]](), dict[str, str]()
        full, taken, answered_at = 0, 0, time.monotonic()
        while waiting:
            for book in list(waiting):
                try:
                    look = self._known(book, self._wire.look, book.batch)
                    answered_at = time.monotonic()
                except Down as error:
                    if time.monotonic() - answered_at > self.patience:
                        raise
                    self._say(str(error))
                    break
                line = status_line(look)
                if said.get(book.name) != line:
                    said[book.name] = line
                    self._say(f"batch {book.batch}: {line}")
                if look["status"] not in ENDED:
                    continue
                waiting.remove(book)
                if look["status"] == "failed" and not look.get("output_file_id"):
                    full += self._failed(book, look)
                else:
                    taken += 1
                    reasons |= self._collect(book, look, health)
            if waiting:
                time.sleep(self.poll)
        if full and not taken:
            raise SpeedlitError(
                f"the teacher at {self.name} has no room for a batch of this size ({FULL}): lower teacher.batch_requests (now {self.requests}), "
                "or wait until other batches of the account are done, and start again"
            )
        return reasons

    def _known(self, book: Book, call: Callable[..., Any], *args: Any) -> Any:
        """Ask the server for something of a batch.

        Raises:
            SpeedlitError: it knows nothing of it; says what to remove.
        """
        try:
            return call(*args)
        except Refused as error:
            if error.outcome.status != 404:
                raise
            remedy = f"use the server and the key that it was handed in with, or remove {book.path} to have its requests asked anew"
            raise SpeedlitError(f"{error}: {remedy}") from error

    def _failed(self, book: Book, look: Mapping[str, Any]) -> bool:
        """A batch that the server did not begin; True where it had no room for it.

        Raises:
            SpeedlitError: any other reason would befall the next batch too.
        """
        rows = (look.get("errors") or {}).get("data") or [{}]
        code, message = str(rows[0].get("code") or "failed"), " ".join(str(rows[0].get("message") or "").split())
        self._withdraw(book, code)
        if code == FULL:
            return True
        raise SpeedlitError(f"the teacher at {self.name} refuses the batch {look.get('id')} ({code}: {self._clean(message)[:300]}): mend that and start again")

    def _withdraw(self, book: Book, reason: str) -> None:
        """Close the rows of a batch that was never begun: it cost nothing."""
        journal = self._journal(book)
        events = Counter(rows_after(journal.path, book.after))
        open_rows = [key for key in book.keys if events[key, "sent"] > sum(events[key, name] for name in ("answered", "damaged", "failed", "repeated"))]
        journal.append([Event(key, "failed", 400, detail=reason) for key in open_rows])
        book.done()

    def _collect(self, book: Book, look: Mapping[str, Any], health: Health) -> dict[str, tuple[str, bool]]:
        """Put the answers of a batch into the journal, each once, also when this was begun before and interrupted."""
        journal, seconds = self._journal(book), max(float(look.get(f"{look['status']}_at") or 0) - float(look.get("created_at") or 0), 0.0)
        seen = {key for key, event in rows_after(journal.path, book.after) if event != "sent"}
        own, reasons, end = set(book.keys), dict[str, tuple[str, bool]](), None
        useful = bool(seen & own)  # one refusal after another is no sign of trouble where others were answered
        lines = self._lines(book, look)
        while block := list(itertools.islice(lines, ROWS)):
            events = []
            for key, outcome in block:
                if key not in own or key in seen:
                    continue
                seen.add(key)
                answer = Answer(outcome.raw)
                reason = outcome.reason or ("" if outcome.paid and not answer.fault else answer.fault or f"status_{outcome.status}")
                fate = "failed" if not outcome.paid else "damaged" if reason else "answered"
                events.append(Event(key, fate, outcome.status, seconds, answer.tokens_in, answer.tokens_out, reason, outcome.raw))
                if reason:
                    final = 400 <= outcome.status < 500 and outcome.status not in PASSING
                    reasons[key] = (reason, final)
                    health.bad(outcome, reason)
                    end = end or health.fatal(outcome, reason, 0, final and not useful)
                else:
                    useful = True
                    health.good()
            journal.append(events)
        without = [key for key in book.keys if key not in seen]
        reason = f"batch_{look['status']}"
        journal.append([Event(key, "failed", 0, seconds, detail=reason) for key in without])
        reasons |= dict.fromkeys(without, (reason, False))
        book.done()
        if end is not None:
            raise end
        if look["status"] == "cancelled" and without:
            raise SpeedlitError(f"the batch {book.batch} was cancelled at the server: start again to ask the {len(without)} requests that it left open")
        return reasons

    def _lines(self, book: Book, look: Mapping[str, Any]) -> Iterator[tuple[str, Outcome]]:
        """Key and outcome of each line of a batch's output and error files."""
        paths = []
        for name in ("output", "error"):
            if file := look.get(f"{name}_file_id"):
                paths.append(book.place / f"{book.name}.{name}")
                self._download(book, str(file), paths[-1], int((look.get("request_counts") or {}).get("completed") or 0) if name == "output" else 0)
        for path in paths:
            with path.open(encoding="utf-8", errors="replace") as stream:
                for line in stream:
                    if (row := self._outcome(line)) is not None:
                        yield row
            remove(path)

    def _download(self, book: Book, file: str, path: Path, least: int) -> None:
        """Fetch a file until it has as many lines as the server says: what is missing would be paid again."""
        for attempt in range(self.retries + 1):
            self._known(book, self._wire.fetch, file, path)
            with path.open("rb") as stream:
                count = sum(1 for line in stream if line.strip())
            if count >= least:
                return
            if attempt < self.retries:
                time.sleep(self.poll)
        raise SpeedlitError(f"the teacher at {self.name} gives only {count} of the {least} answers in the file {file}: start again later to collect them")

    def _outcome(self, line: str) -> tuple[str, Outcome] | None:
        """What one line says, or None where it says nothing."""
        try:
            row = json.loads(line)
            key, response, error = str(row["custom_id"]), row.get("response") or {}, row.get("error") or {}
            status = int(response.get("status_code") or 0)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        raw = self._clean(json.dumps(response["body"], ensure_ascii=False), SECRET) if response.get("body") is not None else ""
        if 200 <= status < 300:
            return key, Outcome(status, raw)
        code = str(error.get("code") or "") if isinstance(error, dict) else ""
        return key, Outcome(status, raw, error_code(raw) or code or f"status_{status}")

    def _journal(self, book: Book) -> Journal:
        """The journal that a batch belongs to: another than ours where the run was cut into other shards before."""
        path = self.journal.path.with_name(f"{book.place.name}.sqlite")
        if path == self.journal.path:
            return self.journal
        if path not in self._journals:
            self._journals[path] = Journal(path)
        return self._journals[path]


def status_line(look: Mapping[str, Any]) -> str:
    """A batch's state for a person."""
    counts = look.get("request_counts") or {}
    failed = f", {counts['failed']} failed" if counts.get("failed") else ""
    return f"{look['status']}, {counts.get('completed') or 0} of {counts.get('total') or '?'} done{failed}"
