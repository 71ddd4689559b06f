"""Shards: litdata chunks of raw-text rows, with a manifest of our own beside litdata's index.

litdata notices neither a flipped byte nor a chunk that its index has lost, and waits two minutes for one that is missing.
``manifest.json`` holds the sha256 and row count of each chunk; a set that doesn't match it is refused, naming the file. A large
set's chunks are compared when they are first read, so that training begins at once and a set can be streamed.
Writing uses litdata's chunk writer, in this process or one per chunk; its multi-process ``optimize`` would cost seconds for any set.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from speedlit.data.chunks import Chunk
from speedlit.errors import UsageError
from speedlit.files import content_id, disk_error, read_json, remove, sha256_file, write_json
from speedlit.workers import in_order

SCHEMA = 1
MANIFEST, INDEX, LENGTHS = "manifest.json", "index.json", "lengths.npy"
IN_MEMORY = 128 << 20  # bytes of chunks up to which a set is read once and kept
ONE_CHUNK = 1 << 40  # bytes at which a chunk is closed where all of a job's rows belong into one
OPEN = 64  # chunks of a large set that are open at a time
J = TypeVar("J")
Made = tuple[np.ndarray, Counter[str]]

# What a row must hold, and which of it is measured (in characters) for the plan of a run.
SHAPES: dict[str, dict[str, type]] = {
    "sft": {"prompt": str, "completion": str},
    "preference": {"prompt": str, "chosen": str, "rejected": str},
    "contrastive": {"kind": str, "instruction": str, "query": str, "positive": str, "negatives": list},
}
# What contrastive rows may hold besides, one entry for the positive and one per negative: labels (texts of one label are
# never each other's negatives) and scores (how well each document answers, on any scale).
OPTIONAL: dict[str, type] = {"labels": str, "scores": float}


@dataclass
class Manifest:
    """What a shard set holds.

    Attributes:
        shape: sft, preference or contrastive.
        count: rows.
        chunks: per file: name, sha256, rows, bytes.
        index: sha256 of litdata's index.
        lengths: sha256 of lengths.npy: what the batch plan knows of each row.
        kinds: rows per task kind (contrastive).
        columns: of lengths.npy: characters of each text field; of contrastive rows also the number of documents and the kind
            (its place among the sorted ``kinds``). Empty in sets of older versions, which have the text fields only.
    """

    shape: str
    count: int
    chunks: list[dict[str, Any]]
    index: str
    lengths: str
    kinds: dict[str, int] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    schema: int = SCHEMA


def write_shards(rows: Iterable[dict[str, Any]], out: Path, shape: str, chunk_bytes: int = 64 << 20) -> Manifest:
    """Write rows as a shard set; it appears under its name only when complete, in place of a set that was there.

    Args:
        rows: dicts of the shape's fields; ``id`` is added where it is missing, other keys are left out.
        out: the folder.
        shape: sft, preference or contrastive.
        chunk_bytes: size at which a chunk is closed.

    Raises:
        UsageError: an unknown shape, a row without one of the fields, no rows at all, or a folder that holds something else.
    """
    with _in_place(out, shape) as folder:
        made = _chunks(rows, folder, shape, chunk_bytes)
        return _finish(folder, shape, [made])


def write_chunks(jobs: Sequence[J], rows_of: Callable[[J], Iterable[dict[str, Any]]], out: Path, shape: str, done: Callable[[J], None]) -> Manifest:
    """Write a shard set of one chunk per job, in worker processes; else as ``write_shards``.

    Args:
        jobs: picklable, in the order of their rows.
        rows_of: gives the rows of a job, at least one; importable in a fresh process.
        out: the folder.
        shape: sft, preference or contrastive.
        done: called with each job that is written.
    """
    with _in_place(out, shape) as folder:
        made = []
        for job, part in zip(jobs, in_order(partial(_chunk, rows_of, folder, shape), enumerate(jobs)), strict=True):
            made.append(part)
            done(job)
        return _finish(folder, shape, made)


@contextmanager
def _in_place(out: Path, shape: str) -> Iterator[Path]:
    """A folder to write in, which takes the place of ``out`` at the end."""
    if shape not in SHAPES:
        raise UsageError(f"unknown shape {shape!r}; choose among {', '.join(SHAPES)}")
    out = Path(out)
    if out.exists() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise UsageError(f"{out} is there already and is not a finished shard set; name another folder or remove it")
    for stale in out.parent.glob(f".{out.name}.*.tmp"):  # of an interrupted attempt
        remove(stale)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        remove(out)
        temporary.rename(out)
    except OSError as error:
        raise disk_error(error, out) from error
    finally:
        remove(temporary)


def _chunk(rows_of: Callable[[J], Iterable[dict[str, Any]]], folder: Path, shape: str, numbered: tuple[int, J]) -> Made:
    number, job = numbered
    return _chunks(rows_of(job), folder, shape, ONE_CHUNK, number)


def _chunks(rows: Iterable[dict[str, Any]], folder: Path, shape: str, chunk_bytes: int, writer_number: int = 0) -> Made:
    """Write one writer's chunks and its own index; gives the lengths and the kinds of its rows."""
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=chunk_bytes)
    writer._rank = writer_number  # the chunks' names and place among those of other writers; else a matter of environment variables
    lengths: list[list[int]] = []
    kinds: Counter[str] = Counter()
    extra: list[str] | None = None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="An item was larger than the target chunk size")
        for number, row in enumerate(rows):
            clean = checked(row, shape, number)
            extra = [name for name in OPTIONAL if name in clean] if extra is None else extra
            writer[number] = clean = _same_columns(clean, extra, number)
            lengths.append([_length(clean[name]) for name in _texts(shape)])
            if shape == "contrastive":
                kinds[clean["kind"]] += 1
                lengths[-1] += [1 + len(clean["negatives"]), list(kinds).index(clean["kind"])]
        writer.done()
    return np.asarray(lengths, dtype=np.int32), kinds


def _finish(folder: Path, shape: str, made: Sequence[Made]) -> Manifest:
    """Merge the writers' indices and write lengths and manifest."""
    from litdata.streaming.writer import BinaryWriter

    if not any(len(lengths) for lengths, _ in made):
        raise UsageError("there are no rows to write")
    BinaryWriter(str(folder), chunk_bytes=ONE_CHUNK).merge(len(made))
    kinds = dict(sum((kinds for _, kinds in made), Counter[str]()))
    columns = _texts(shape)
    if shape == "contrastive":
        columns += ["documents", "kind"]
        for lengths, own in made:  # from the order in which the writer met them to the sorted one
            lengths[:, -1] = np.asarray([sorted(kinds).index(name) for name in own])[lengths[:, -1]]
    np.save(folder / LENGTHS, np.concatenate([lengths for lengths, _ in made]))
    chunks = [
        {"file": c["filename"], "rows": c["chunk_size"], "bytes": (folder / c["filename"]).stat().st_size, "sha256": sha256_file(folder / c["filename"])}
        for c in read_json(folder / INDEX)["chunks"]
    ]
    manifest = Manifest(shape, sum(chunk["rows"] for chunk in chunks), chunks, sha256_file(folder / INDEX), sha256_file(folder / LENGTHS), kinds, columns)
    write_json(folder / MANIFEST, asdict(manifest))
    return manifest


def _texts(shape: str) -> list[str]:
    """The text fields of a shape."""
    return [name for name in SHAPES[shape] if name != "kind"]


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str) else sum(map(len, value))


def _same_columns(row: dict[str, Any], extra: list[str], number: int) -> dict[str, Any]:
    """The row with the first row's optional fields, empty where it has none.

    Raises:
        UsageError: it has one that the first row lacks; litdata writes all rows of a set alike.
    """
    for name in OPTIONAL:
        if name in row and name not in extra:
            raise UsageError(f"row {number} has {name!r} and row 0 has not: a set's first row decides (give it {name!r}: [])")
    return {**row, **{name: row.get(name, []) for name in extra}}


def checked(row: dict[str, Any], shape: str, number: int) -> dict[str, Any]:
    """The fields of a row in their order, with an id.

    Raises:
        UsageError: a field is missing or not text; names the row.
    """
    row = {"kind": "retrieval", "instruction": "", "negatives": [], **row} if shape == "contrastive" else row
    for name, kind in SHAPES[shape].items():
        if name not in row:
            raise UsageError(f"row {number} has no {name!r}; a {shape} row needs {', '.join(SHAPES[shape])} and has {', '.join(row)}")
        if not isinstance(row[name], kind) or (kind is list and not all(isinstance(text, str) for text in row[name])):
            raise UsageError(f"row {number}: {name!r} must be {'a list of texts' if kind is list else 'text'}, not {type(row[name]).__name__}")
    found = {name: row[name] for name in SHAPES[shape]}
    if shape == "contrastive":
        found |= {name: _per_document(row, name, number) for name in OPTIONAL if row.get(name) is not None}
    return {"id": str(row.get("id") or content_id(found)), **found}


def _per_document(row: dict[str, Any], name: str, number: int) -> list[Any]:
    """Labels or scores of a row: none, or one for the positive and one per negative."""
    values, count = list(row[name]), 1 + len(row["negatives"])
    if values and len(values) != count:
        raise UsageError(f"row {number}: {name!r} has {len(values)} entries; one for the positive and one per negative are needed")
    if OPTIONAL[name] is float and not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
        raise UsageError(f"row {number}: {name!r} must be finite numbers, not {values}")
    return [OPTIONAL[name](value) for value in values]


class ShardSet:
    """A finished shard set, readable by index.

    Args:
        path: its folder.

    Raises:
        UsageError: not there, not finished, or of another schema.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_file():
            raise UsageError(f"shards {self.path} is a file; `speedlit shard {self.path} --to DIR` makes a shard set of it, then name DIR")
        if not self.path.is_dir():
            raise UsageError(f"shards {self.path}: no such folder; `speedlit shard SOURCE --to {self.path}` makes one")
        if not (self.path / MANIFEST).is_file():
            raise UsageError(f"shards {self.path}: there is no {MANIFEST}, so the set is not finished; write it with `speedlit shard SOURCE --to {self.path}`")
        found = read_json(self.path / MANIFEST)
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise UsageError(f"{self.path / MANIFEST} is of another version; write the shards again with `speedlit shard`")
        try:
            self.manifest = Manifest(**found)
        except TypeError as error:
            raise UsageError(f"{self.path / MANIFEST} is damaged ({error}); write the shards again with `speedlit shard`") from error
        self._rows: list[dict[str, Any]] | None = None
        self._config: dict[str, Any] | None = None
        self._open: OrderedDict[int, Chunk] = OrderedDict()
        self._sound: set[int] = set()  # chunks that were compared with the manifest
        self.starts = np.cumsum([0, *(chunk["rows"] for chunk in self.manifest.chunks)])

    @property
    def shape(self) -> str:
        """sft, preference or contrastive."""
        return self.manifest.shape

    @property
    def small(self) -> bool:
        """Whether all rows are kept in memory once read."""
        return sum(int(chunk["bytes"]) for chunk in self.manifest.chunks) <= IN_MEMORY

    def verify(self) -> ShardSet:
        """Compare every file with the manifest; returns itself.

        Raises:
            UsageError: a file is missing, cut, changed or not listed; names it.
        """
        self.check()
        for number in range(len(self.manifest.chunks)):
            self._compare(number)
        return self

    def check(self) -> ShardSet:
        """What :meth:`verify` does, but of the chunks look only whether they are there and of the right size; their content is compared when it is read.

        Raises:
            UsageError: as :meth:`verify`.
        """
        for chunk in self.manifest.chunks:
            path = self.path / chunk["file"]
            if not path.is_file():
                raise self._damaged(chunk["file"], "is missing")
            if path.stat().st_size != chunk["bytes"]:
                raise self._damaged(chunk["file"], f"has {path.stat().st_size} bytes where the manifest says {chunk['bytes']}")
        for name, digest in ((INDEX, self.manifest.index), (LENGTHS, self.manifest.lengths)):
            if not (self.path / name).is_file():
                raise self._damaged(name, "is missing")
            if sha256_file(self.path / name) != digest:
                raise self._damaged(name, "was changed (its sha256 is not the manifest's)")
        listed = [chunk["filename"] for chunk in read_json(self.path / INDEX)["chunks"]]
        if listed != [chunk["file"] for chunk in self.manifest.chunks] or int(self.starts[-1]) != self.manifest.count:
            raise self._damaged(INDEX, "and the manifest list different chunks")
        return self

    def _compare(self, number: int) -> None:
        chunk = self.manifest.chunks[number]
        if not (self.path / chunk["file"]).is_file():
            raise self._damaged(chunk["file"], "is missing")
        if number not in self._sound and sha256_file(self.path / chunk["file"]) != chunk["sha256"]:
            raise self._damaged(chunk["file"], "was changed (its sha256 is not the manifest's)")
        self._sound.add(number)

    def _damaged(self, name: str, what: str) -> UsageError:
        return UsageError(f"shard file {self.path / name} {what}; write the shards again with `speedlit shard SOURCE --to {self.path}`")

    def __len__(self) -> int:
        return self.manifest.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.take([range(len(self))[index]])[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start, end in zip(self.starts[:-1], self.starts[1:], strict=True):
            for first in range(int(start), int(end), 1024):
                yield from self.take(range(first, min(first + 1024, int(end))))

    def take(self, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """The rows at ``indices``, in their order; of a large set, chunk by chunk."""
        if self.small:
            rows = self.rows()
            return [rows[index] for index in indices]
        indices = np.asarray(indices)
        places = np.searchsorted(self.starts, indices, side="right") - 1
        found: dict[int, dict[str, Any]] = {}
        for place in np.unique(places):
            chosen = np.flatnonzero(places == place)
            found.update(zip(chosen.tolist(), self._chunk(int(place)).rows(indices[chosen] - self.starts[place]), strict=True))
        return [found[number] for number in range(len(indices))]

    def rows(self) -> list[dict[str, Any]]:
        """All rows, read once."""
        if self._rows is None:
            sizes = [int(chunk["rows"]) for chunk in self.manifest.chunks]
            self._rows = [row for place, size in enumerate(sizes) for row in self._chunk(place).rows(range(size))]
            self._open.clear()
        return self._rows

    def table(self) -> dict[str, np.ndarray]:
        """What the plan knows of each row, by column; of contrastive sets of older versions, documents and kinds are counted now."""
        columns = self.manifest.columns or _texts(self.shape)
        found = dict(zip(columns, np.asarray(np.load(self.path / LENGTHS)).T, strict=True))
        if self.shape == "contrastive" and "kind" not in found:
            names = sorted(self.manifest.kinds)
            counts = np.asarray([(1 + len(row["negatives"]), names.index(row["kind"])) for row in self], dtype=np.int32)
            found["documents"], found["kind"] = counts.T
        return found

    def _chunk(self, number: int) -> Chunk:
        """A chunk, opened and compared with the manifest once; those not used for longest are closed."""
        if number not in self._open:
            self._compare(number)
            if self._config is None:
                self._config = read_json(self.path / INDEX)["config"]
            self._open[number] = Chunk(self.path / self.manifest.chunks[number]["file"], self._config)
            if len(self._open) > OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # each loader worker opens its own
