"""The journal: what was asked, and every raw answer, before anything is parsed. Paid once, kept for ever.

One SQLite file per process (``journal.sqlite``, or ``journal-00002-of-00008.sqlite`` for a shard) in write-ahead mode, and one
append-only table. Lookups read all journals of the folder, so shards share what was paid. A row is an event of one attempt: ``sent``
before a request leaves, then ``answered``, ``damaged`` (paid, but unusable: asked again) or ``failed``. A ``sent`` without a later
event was in flight when the process died; a budget has to charge it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speedlit.context import Request
from speedlit.errors import SpeedlitError
from speedlit.files import canonical_json

TABLE = """
CREATE TABLE IF NOT EXISTS attempts (
    n INTEGER PRIMARY KEY, key TEXT NOT NULL, event TEXT NOT NULL, at REAL NOT NULL, process INTEGER NOT NULL, status INTEGER NOT NULL,
    seconds REAL NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, detail TEXT NOT NULL, raw BLOB)
"""
INDEX = "CREATE INDEX IF NOT EXISTS answers ON attempts (key) WHERE event = 'answered'"
INSERT = "INSERT INTO attempts (key, event, at, process, status, seconds, tokens_in, tokens_out, detail, raw) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
LOOKUP_BATCH = 400  # SQLite's oldest limit of bound values is 999


@dataclass(frozen=True)
class Event:
    """One row to append; ``raw`` is the body of the response as it came. A ``sent`` row holds its worst case and its tariff (see budget.py)."""

    key: str
    event: str  # sent | answered | damaged | failed
    status: int = 0
    seconds: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    detail: str = ""
    raw: str = ""


def request_key(role: str, model: str, request: Request, extra: Mapping[str, Any] | None = None) -> str:
    """sha256 over what makes an answer the same: who is asked (by role, since ports change), model, messages, sampling, seed, sample index."""
    sampling = {"temperature": request.sampling.temperature, "top_p": request.sampling.top_p, "max_tokens": request.sampling.max_tokens}
    messages = [dict(message) for message in request.messages]
    what: dict[str, Any] = {"role": role, "model": model, "messages": messages, "sampling": sampling, "seed": request.sampling.seed, "index": request.index}
    what |= {"extra": dict(extra)} if extra else {}
    what |= {"schema": request.schema} if request.schema is not None else {}
    return hashlib.sha256(canonical_json(what).encode()).hexdigest()


def journal_file(root: Path, shard: tuple[int, int] = (0, 1)) -> Path:
    """The file that one process writes: ``journal.sqlite`` for a single one, a file of its own for each shard."""
    index, count = shard
    return root / ("journal.sqlite" if count == 1 else f"journal-{index:05d}-of-{count:05d}.sqlite")


class Journal:
    """Append-only store of attempts. Every method may be called from any thread.

    Args:
        path: this process's own file; other ``journal*.sqlite`` files beside it are read, never written.

    Raises:
        SpeedlitError: the file cannot be opened, or the disk is full (nothing already written is lost).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._own = self._open(path)
            others = (other for other in sorted(path.parent.glob("journal*.sqlite")) if other != path)
            self._others = [self._open(other, read_only=True) for other in others]
        except (sqlite3.Error, OSError) as error:
            raise self._sentence(error) from error

    @classmethod
    def for_shard(cls, root: Path, shard: tuple[int, int] = (0, 1)) -> Journal:
        """The open journal of one process."""
        return cls(journal_file(root, shard))

    def _open(self, path: Path, read_only: bool = False) -> sqlite3.Connection:
        db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        if not read_only:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute(TABLE)
            db.execute(INDEX)
        return db

    def append(self, events: Sequence[Event]) -> None:
        """Write events in one transaction; on return they are on the disk.

        Raises:
            SpeedlitError: the write failed, for instance on a full disk.
        """
        now, process = time.time(), os.getpid()
        packed = (zlib.compress(e.raw.encode(), 1) if e.raw else None for e in events)
        rows = [(e.key, e.event, now, process, e.status, e.seconds, e.tokens_in, e.tokens_out, e.detail, raw) for e, raw in zip(events, packed, strict=True)]
        with self._lock:
            try:
                self._own.execute("BEGIN IMMEDIATE")
                self._own.executemany(INSERT, rows)
                self._own.execute("COMMIT")
            except sqlite3.Error as error:
                with contextlib.suppress(sqlite3.Error):
                    self._own.execute("ROLLBACK")
                raise self._sentence(error) from error

    def answers(self, keys: Iterable[str]) -> dict[str, str]:
        """Raw bodies of those ``keys`` that were answered, by key (the first answer, should there be two)."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, str] = {}
        with self._lock:
            for db in (self._own, *self._others):
                for start in range(0, len(wanted), LOOKUP_BATCH):
                    batch = [key for key in wanted[start : start + LOOKUP_BATCH] if key not in found]
                    found.update(self._select(db, batch))
        return found

    def _select(self, db: sqlite3.Connection, keys: Sequence[str]) -> dict[str, str]:
        marks = ",".join("?" * len(keys))
        query = f"SELECT key, raw FROM attempts WHERE event = 'answered' AND key IN ({marks}) ORDER BY n DESC"  # noqa: S608 (only question marks)
        try:
            return {key: zlib.decompress(raw).decode() for key, raw in db.execute(query, keys)}
        except sqlite3.Error as error:
            raise self._sentence(error) from error

    def counts(self) -> Mapping[str, Any]:
        """Totals over all journals of the folder: events by name, tokens, and ``orphaned`` (sent, then nothing: a crash)."""
        total = {"sent": 0, "answered": 0, "damaged": 0, "failed": 0, "tokens_in": 0, "tokens_out": 0}
        with self._lock:
            for db in (self._own, *self._others):
                for event, rows, tokens_in, tokens_out in db.execute("SELECT event, COUNT(*), SUM(tokens_in), SUM(tokens_out) FROM attempts GROUP BY event"):
                    total[event] += rows
                    total["tokens_in"] += tokens_in * (event != "sent")  # there they are a worst case, for the budget
                    total["tokens_out"] += tokens_out * (event != "sent")
        return {**total, "orphaned": total["sent"] - total["answered"] - total["damaged"] - total["failed"]}

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for db in (self._own, *self._others):
                db.close()

    def _sentence(self, error: Exception) -> SpeedlitError:
        text = str(error)
        if "full" in text or getattr(error, "errno", None) == 28:
            return SpeedlitError(f"no space left on the disk while writing {self.path}: free some room and start again; no answer that was stored is lost")
        return SpeedlitError(f"cannot use the journal {self.path}: {text}; check the folder, or move the file away to start a new one")
