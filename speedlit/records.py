"""The records of the loop. A rerun gives the same ids, and every join is by id.

Lineage: Topic -> Task -> Prompt -> Generation -> Record -> Preference | Revision -> Triplet. An id is the hash of the fields
that say *what* a record is (``ID_FIELDS``), never of how long it took or when (``provenance``, ``usage``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from speedlit.errors import UsageError
from speedlit.files import content_id, read_jsonl, write_jsonl

SCHEMA = 1
T = TypeVar("T", bound="Row")


@dataclass(frozen=True)
class Row:
    """What every record has: a content id and a way to and from JSON."""

    ID_FIELDS: ClassVar[tuple[str, ...]] = ()

    @cached_property
    def id(self) -> str:
        """First 16 hex digits of sha256 over the canonical JSON of the identifying fields."""
        return content_id({"type": type(self).__name__, **{name: getattr(self, name) for name in self.ID_FIELDS}})

    def to_json(self) -> dict[str, Any]:
        """The record as one JSON object, with its id and the schema version."""
        return {"id": self.id, "schema": SCHEMA, **{f.name: getattr(self, f.name) for f in fields(self)}}

    @classmethod
    def from_json(cls: type[T], row: Mapping[str, Any]) -> T:
        """Rebuild a record.

        Raises:
            UsageError: a field is missing or the schema version is another one.
        """
        if row.get("schema", SCHEMA) != SCHEMA:
            raise UsageError(f"record {row.get('id')} has schema {row['schema']}, this version of speedlit reads {SCHEMA}")
        try:
            made = cls(**{f.name: row[f.name] for f in fields(cls) if f.name in row})
        except TypeError as error:
            raise UsageError(f"record {row.get('id')} is not a {cls.__name__}: {error}") from error
        if isinstance(row.get("id"), str):
            made.__dict__["id"] = row["id"]  # hashed when it was written
        return made


@dataclass(frozen=True)
class Topic(Row):
    """A path such as ``Arts/Movies/Titles``; ``source`` is the file it came from."""

    ID_FIELDS: ClassVar[tuple[str, ...]] = ("path",)
    path: str
    source: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class Task(Row):
    """One brainstormed task sentence. ``group`` is the cell by which splits are made and bootstraps are clustered."""

    ID_FIELDS: ClassVar[tuple[str, ...]] = ("topic_id", "kind", "text")
    topic_id: str
    topic: str
    kind: str
    text: str
    group: str
    split: str  # train | validation | test


@dataclass(frozen=True)
class Prompt(Row):
    """A rendered prompt: what a writer of one sample is asked. ``use`` says which stage samples it."""

    ID_FIELDS: ClassVar[tuple[str, ...]] = ("task_id", "kind", "template", "knobs", "messages", "use", "index")
    task_id: str
    kind: str
    task: str
    topic: str
    group: str
    split: str
    use: str  # seed | root | synthetic | validation | test
    index: int
    template: str  # name@version of the template
    knobs: dict[str, Any]
    messages: list[dict[str, str]]
    keys: list[str] = field(default_factory=list)  # JSON keys of the answer in writing order (files of records sort theirs)

    @property
    def text(self) -> str:
        """The last user message, which is what a local generator reads."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Generation(Row):
    """One raw answer to one prompt."""

    ID_FIELDS: ClassVar[tuple[str, ...]] = ("prompt_id", "source", "index", "text")
    prompt_id: str
    source: str  # seed | junior | senior | control | teacher ...
    index: int
    text: str
    finish_reason: str = "stop"
    usage: dict[str, int] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record(Row):
    """A parsed sample. ``fields`` keeps the keys of its kind in their order; query, positive and negatives are read from it."""

    ID_FIELDS: ClassVar[tuple[str, ...]] = ("generation_id", "fields")
    generation_id: str
    prompt_id: str
    kind: str
    instruction: str
    fields: dict[str, str]
    query: str
    positive: str
    negatives: list[str]
    parsed_by: str = "strict"  # strict | repaired | revised
    source: str = ""
    index: int = 0


@dataclass(frozen=True)
class Preference(Row):
    """A ranking: the chosen and the rejected record of one prompt, and everything the judge said."""

    ID_FIELDS: ClassVar[tuple[str, ...]] = ("prompt_id", "chosen", "rejected")
    prompt_id: str
    chosen: str  # record ids
    rejected: str
    candidates: list[str]  # record ids in the order shown
    scores: list[float]  # one per candidate where the judge gives them, else empty
    reason: str = ""
    consistent: bool | None = None  # agreement after swapping the order, where asked


@dataclass(frozen=True)
class Revision(Row):
    """A root record before and after; ``status``: kept | revised | fallback (unusable revision, root kept)."""

    ID_FIELDS: ClassVar[tuple[str, ...]] = ("record_id", "after", "source")
    record_id: str
    prompt_id: str
    kind: str
    source: str
    before: dict[str, str]
    after: dict[str, str]
    edits: list[list[str]]  # [field, find, replace]
    status: str
    reason: str = ""


@dataclass(frozen=True)
class Triplet(Row):
    """What the embedder reads."""

    ID_FIELDS: ClassVar[tuple[str, ...]] = ("record_id", "instruction", "query", "positive", "negatives")
    record_id: str
    kind: str
    instruction: str
    query: str
    positive: str
    negatives: list[str]
    source: str
    lineage: dict[str, str]  # topic, task, prompt, generation, record, revision ids


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write records as JSON lines, atomically; returns how many."""
    return write_jsonl(path, (row.to_json() for row in rows))


def read_rows(path: Path, kind: type[T]) -> Iterator[T]:
    """Yield the records of one type from a JSON-lines file."""
    return (kind.from_json(row) for row in read_jsonl(path))
