"""The journal: what was asked, and every raw answer, before anything is parsed. Paid once, kept for ever.

One SQLite file per process (``journal.sqlite``, or ``journal-00002-of-00008.sqlite`` for a shard) and one append-only table. Lookups
read all journals of the folder, those that appear later included, so shards share what was paid; of two answers to one request the
earlier counts, whoever asks. A row is an event of one attempt: ``sent`` before a request leaves, then ``answered``, ``damaged`` (paid,
but unusable: asked again), ``failed``, or ``repeated`` (an answer to what this file has answered before). A ``sent`` without a later
event was in flight when the process died; a budget has to charge it.

On a local disk the file is in write-ahead mode. That mode shares memory between processes and is unsafe between machines, so on any
other filesystem the rollback journal is used: slower, and right as long as the filesystem keeps POSIX locks.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speedlit.context import Request
from speedlit.errors import SpeedlitError
from speedlit.files import canonical_json, on_local_disk

TABLE = """
CREATE TABLE IF NOT EXISTS attempts (
    n INTEGER PRIMARY KEY, key TEXT NOT NULL, event TEXT NOT NULL, at REAL NOT NULL, process INTEGER NOT NULL, status INTEGER NOT NULL,
    seconds REAL NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, detail TEXT NOT NULL, raw BLOB)
"""
INDEX = "CREATE INDEX IF NOT EXISTS answers ON attempts (key) WHERE event = 'answered'"
INSERT = """
INSERT INTO attempts (key, event, at, process, status, seconds, tokens_in, tokens_out, detail, raw) VALUES (?1,
    CASE WHEN ?2 = 'answered' AND EXISTS (SELECT 1 FROM attempts WHERE event = 'answered' AND key = ?1) THEN 'repeated' ELSE ?2 END,
    ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
"""
AFTER = "SELECT n, key, event, at, status, tokens_in, tokens_out, detail FROM attempts WHERE n > ? ORDER BY n LIMIT 20000"
TOTALS = "SELECT event, COUNT(*), SUM(tokens_in), SUM(tokens_out) FROM attempts GROUP BY event"
PATIENCE = 60.0  # seconds to wait for a lock
LOOKUP_BATCH = 400  # SQLite's oldest limit of bound values is 999


@dataclass(frozen=True)
class Event:
    """One row to append; ``raw`` is the body of the response as it came. A ``sent`` row holds its worst case and its tariff (see budget.py)."""

    key: str
    event: str  # sent | answered | damaged | failed; an answer that is there already is stored as repeated
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
        self._others: dict[Path, sqlite3.Connection] = {}
        with _sentences(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._own = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
            self._shared = not on_local_disk(path)
            self._own.execute(f"PRAGMA journal_mode={'DELETE' if self._shared else 'WAL'}")
            self._own.execute(f"PRAGMA synchronous={'EXTRA' if self._shared else 'FULL'}")
            self._own.execute(TABLE)
            self._own.execute(INDEX)

    @classmethod
    def for_shard(cls, root: Path, shard: tuple[int, int] = (0, 1)) -> Journal:
        """The open journal of one process."""
        return cls(journal_file(root, shard))

    def append(self, events: Sequence[Event]) -> None:
        """Write events in one transaction; on return they are on the disk.

        Raises:
            SpeedlitError: the write failed, for instance on a full disk.
        """
        now, process = time.time(), os.getpid()
        packed = (zlib.compress(e.raw.encode("utf-8", "surrogatepass"), 1) if e.raw else None for e in events)
        rows = [(e.key, e.event, now, process, e.status, e.seconds, e.tokens_in, e.tokens_out, e.detail, raw) for e, raw in zip(events, packed, strict=True)]
        with self._lock, _sentences(self.path):
            try:
                self._own.execute("BEGIN IMMEDIATE")
                self._own.executemany(INSERT, rows)
                self._own.execute("COMMIT")
            except sqlite3.Error:
                with contextlib.suppress(sqlite3.Error):
                    self._own.execute("ROLLBACK")
                raise
        if self._shared:  # a commit shuts readers out; those of other shards look in between
            time.sleep(min(time.time() - now, 0.25))

    def answers(self, keys: Iterable[str]) -> dict[str, str]:
        """Raw bodies of those ``keys`` that were answered, by key (the earliest answer, should there be several).

        Raises:
            SpeedlitError: a journal of the folder cannot be read.
        """
        wanted = list(dict.fromkeys(keys))
        found: dict[str, tuple[float, str, bytes, Path]] = {}
        with self._lock:
            for path, db in self._all():
                for start in range(0, len(wanted), LOOKUP_BATCH):
                    for key, at, raw in self._select(path, db, wanted[start : start + LOOKUP_BATCH]):
                        found[key] = min(found.get(key, (at, path.name, raw, path)), (at, path.name, raw, path))
        return {key: _unpack(raw, path) for key, (_, _, raw, path) in found.items()}

    def counts(self) -> Mapping[str, Any]:
        """Totals over all journals of the folder: events by name, tokens that answers took, and ``orphaned`` (sent, then nothing: a crash).

        Raises:
            SpeedlitError: a journal of the folder cannot be read.
        """
        total = {"sent": 0, "answered": 0, "damaged": 0, "failed": 0, "repeated": 0, "tokens_in": 0, "tokens_out": 0}
        with self._lock:
            for path, db in self._all():
                with _sentences(path):
                    for event, rows, tokens_in, tokens_out in _rows(db, TOTALS):
                        total[event] += rows
                        if event != "sent":  # there they are a worst case
                            total["tokens_in"] += tokens_in
                            total["tokens_out"] += tokens_out
        ended = sum(total[event] for event in ("answered", "damaged", "failed", "repeated"))
        return {**total, "orphaned": total["sent"] - ended}

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for db in (self._own, *self._others.values()):
                db.close()

    def _all(self) -> Iterator[tuple[Path, sqlite3.Connection]]:
        """Every journal of the folder as it is now, this one first."""
        yield self.path, self._own
        there = sorted(self.path.parent.glob("journal*.sqlite"))
        for gone in set(self._others) - set(there):
            self._others.pop(gone).close()
        for path in there:
            if path != self.path:
                if path not in self._others:
                    self._others[path] = open_to_read(path)
                yield path, self._others[path]

    def _select(self, path: Path, db: sqlite3.Connection, keys: Sequence[str]) -> list[tuple[str, float, bytes]]:
        query = f"SELECT key, at, raw FROM attempts WHERE event = 'answered' AND key IN ({','.join('?' * len(keys))})"  # noqa: S608 (only question marks)
        with _sentences(path):
            return _rows(db, query, keys)


def open_to_read(path: Path) -> sqlite3.Connection:
    """Another process's journal. Opened for writing, because reading after its crash means tidying up first, but nothing is written.

    Raises:
        SpeedlitError: it cannot be opened.
    """
    with _sentences(path):
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA query_only=ON")
        return db


def emptied(root: Path) -> list[Path]:
    """The journals of a folder where not one of them has a row; nothing where one has, or where there is no common one.

    Those of the jobs of an array alone say nothing: each begins without a row, and the answers before them may lie in another folder.

    Raises:
        SpeedlitError: a journal cannot be read.
    """
    there = sorted(root.glob("journal*.sqlite"), reverse=True)
    if not (root / "journal.sqlite").exists():
        return []
    for path in there:
        with _sentences(path), contextlib.closing(open_to_read(path)) as db:
            if _rows(db, "SELECT 1 FROM attempts LIMIT 1"):
                return []
    return there


def rows_after(path: Path, db: sqlite3.Connection, row: int) -> Iterator[tuple[int, str, str, float, int, int, int, str]]:
    """All rows after a row, without the answers: n, key, event, time, status, tokens in, tokens out, detail.

    Raises:
        SpeedlitError: the journal cannot be read.
    """
    with _sentences(path):
        while block := _rows(db, AFTER, (row,)):
            yield from block
            row = block[-1][0]


def _rows(db: sqlite3.Connection, query: str, values: Sequence[str | int] = ()) -> list[Any]:
    """The rows of a query; none where the file was made a moment ago and is still empty."""
    try:
        return db.execute(query, values).fetchall()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return []
        raise


def _unpack(raw: bytes, path: Path) -> str:
    with _sentences(path):
        return zlib.decompress(raw).decode("utf-8", "surrogatepass")


@contextlib.contextmanager
def _sentences(path: Path) -> Iterator[None]:
    """Failures of one journal as sentences that name it."""
    try:
        yield
    except (sqlite3.Error, OSError, zlib.error, UnicodeDecodeError) as error:
        text, again = str(error), "nothing that was stored is lost"
        if "full" in text or getattr(error, "errno", None) == errno.ENOSPC or _no_room(path):
            raise SpeedlitError(f"no space left on the disk while writing {path}: free some room and start again; {again}") from error
        if "locked" in text or "busy" in text:
            raise SpeedlitError(f"the journal {path} is locked by another process: let that one end, then start again; {again}") from error
        if "malformed" in text or "not a database" in text or isinstance(error, (zlib.error, UnicodeDecodeError)):
            raise SpeedlitError(f"the journal {path} is damaged ({text}): put a copy in its place, or move it away to go on without its answers") from error
        raise SpeedlitError(f"cannot use the journal {path}: {text}; check the folder and its permissions, or move the file away to start a new one") from error


def _no_room(path: Path) -> bool:
    """Whether the disk is full: SQLite then fails in other words too, for instance because it cannot make its helper files."""
    try:
        return shutil.disk_usage(path.parent).free < 1 << 16
    except OSError:
        return False
