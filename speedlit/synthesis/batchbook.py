"""What a process knows of one batch, on the disk before it matters: enough to go on after a crash at any moment.

``<root>/batches/<journal>/<name>.jsonl`` holds the lines as they are uploaded, ``<name>.json`` the state. Names are drawn, and a batch
carries its name as metadata at the server: a batch that was made while this process died is found again and not made twice.
"""

from __future__ import annotations

import fcntl
import json
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from speedlit.errors import SpeedlitError
from speedlit.files import atomic, disk_error, read_jsonl, read_object, remove, write_json

STATES = ("planned", "sent", "uploaded", "creating", "created")  # a batch that is done has no file any more
PATH = "/v1/chat/completions"


@dataclass
class Book:
    """One batch.

    Attributes:
        place: its folder, named after the journal that its rows go to.
        name: drawn once.
        after: last row of the journal when the batch was planned: rows after it with its keys are its own.
        state: one of ``STATES``: lines written; rows ``sent`` written; file at the server; about to be created; created.
        file: the server's id of the uploaded lines, ``batch`` that of the batch.
        keys: request keys of its lines.
    """

    place: Path
    name: str
    after: int
    state: str = "planned"
    file: str = ""
    batch: str = ""
    keys: list[str] = field(default_factory=list)

    @classmethod
    def plan(cls, place: Path, journal: Path, lines: Mapping[str, Mapping[str, Any]]) -> Book:
        """Write a new batch down: bodies by key."""
        book = cls(place, secrets.token_hex(8), last_row(journal))
        book.write(lines)
        book.save()
        return book

    @classmethod
    def opened(cls, place: Path) -> list[Book]:
        """The batches of a folder that are not done. Files without a state are leftovers of a crash.

        Raises:
            SpeedlitError: a state is damaged.
        """
        states = sorted(place.glob("*.json"))
        for path in place.glob("[!.]*.*"):
            if path.with_suffix(".json") not in states:
                remove(path)
        books = []
        for path in states:
            row = read_object(path, "name", "after", "state", "file", "batch")
            book = cls(place, **{key: row[key] for key in ("name", "after", "state", "file", "batch")})
            if book.state not in STATES or not book.lines.exists():
                raise SpeedlitError(f"{path} is damaged; remove it to have its requests asked anew (a batch of that name may have been paid)")
            book.keys = [line["custom_id"] for line in read_jsonl(book.lines)]
            books.append(book)
        return books

    @property
    def lines(self) -> Path:
        """The file that is uploaded."""
        return self.place / f"{self.name}.jsonl"

    @property
    def path(self) -> Path:
        """The file of the state."""
        return self.place / f"{self.name}.json"

    def write(self, lines: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the lines to upload."""
        with atomic(self.lines) as stream:
            for key, body in lines.items():
                stream.write(line_of(key, body))
        self.keys = list(lines)

    def keep(self, keys: Iterable[str]) -> None:
        """Leave out all lines but those of ``keys``."""
        kept = set(keys)
        self.write({line["custom_id"]: line["body"] for line in read_jsonl(self.lines) if line["custom_id"] in kept})

    def bodies(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Key and body of each line."""
        for line in read_jsonl(self.lines):
            yield line["custom_id"], line["body"]

    def to(self, state: str, **ids: str) -> None:
        """Go on to a state, on the disk."""
        self.state = state
        for name, value in ids.items():
            setattr(self, name, value)
        self.save()

    def save(self) -> None:
        """Write the state."""
        row = asdict(self)
        write_json(self.path, {key: row[key] for key in ("name", "after", "state", "file", "batch")})

    def done(self) -> None:
        """Everything is in the journal: the state goes first, so that lines without a state are leftovers."""
        remove(self.path)
        for path in self.place.glob(f"{self.name}.*"):
            remove(path)


def line_of(key: str, body: Mapping[str, Any]) -> str:
    """One line of a batch's input file."""
    return json.dumps({"custom_id": key, "method": "POST", "url": PATH, "body": dict(body)}, ensure_ascii=False) + "\n"


def hold(place: Path) -> IO[str] | None:
    """Take a folder of batches for this process until the file is closed; None where a living process has it.

    Raises:
        SpeedlitError: the folder cannot be made or locked.
    """
    path = place / ".lock"
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = path.open("a")
    except OSError as error:
        raise disk_error(error, path) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    except OSError as error:
        lock.close()
        raise SpeedlitError(f"cannot lock {path}: {error.strerror or error}; use a root on a disk that allows locks, or teacher.mode live") from error
    return lock


def last_row(journal: Path) -> int:
    """Number of a journal's last row."""
    with closing(sqlite3.connect(journal, timeout=60)) as db:
        return int(db.execute("SELECT COALESCE(MAX(n), 0) FROM attempts").fetchone()[0])


def rows_after(journal: Path, row: int) -> Iterator[tuple[str, str]]:
    """Key and event of the rows of a journal after a row."""
    with closing(sqlite3.connect(journal, timeout=60)) as db:
        yield from db.execute("SELECT key, event FROM attempts WHERE n > ?", (row,))
