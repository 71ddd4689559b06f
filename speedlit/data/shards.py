"""Shards: litdata chunks of raw-text rows, with a manifest of our own beside litdata's index.

litdata notices neither a flipped byte nor a chunk that its index has lost, and waits two minutes for one that is missing.
``manifest.json`` holds the sha256 and row count of each chunk; a set that doesn't match it is refused, naming the file.
Writing uses litdata's chunk writer, in this process or one per chunk; its multi-process ``optimize`` would cost seconds for any set.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from speedlit.errors import UsageError
from speedlit.files import content_id, disk_error, read_json, remove, sha256_file, write_json
from speedlit.workers import in_order

SCHEMA = 1
MANIFEST, INDEX, LENGTHS = "manifest.json", "index.json", "lengths.npy"
IN_MEMORY = 128 << 20  # bytes of chunks up to which a set is read once and kept
ONE_CHUNK = 1 << 40  # bytes at which a chunk is closed where all of a job's rows belong into one
J = TypeVar("J")
Made = tuple[np.ndarray, Counter[str]]

# What a row must hold, and which of it is measured (in characters) for the plan of a run.
SHAPES: dict[str, dict[str, type]] = {
    "sft": {"prompt": str, "completion": str},
    "preference": {"prompt": str, "chosen": str, "rejected": str},
    "contrastive": {"kind": str, "instruction": str, "query": str, "positive": str, "negatives": list},
}


@dataclass
class Manifest:
    """What a shard set holds.

    Attributes:
        shape: sft, preference or contrastive.
        count: rows.
        chunks: per file: name, sha256, rows, bytes.
        index: sha256 of litdata's index.
        lengths: sha256 of lengths.npy: characters per row, one column per text field in the order of ``SHAPES``.
        kinds: rows per task kind (contrastive).
    """

    shape: str
    count: int
    chunks: list[dict[str, Any]]
    index: str
    lengths: str
    kinds: dict[str, int] = field(default_factory=dict)
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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="An item was larger than the target chunk size")
        for number, row in enumerate(rows):
            clean = checked(row, shape, number)
            writer[number] = clean
            lengths.append([_length(clean[name]) for name in SHAPES[shape] if name != "kind"])
            if shape == "contrastive":
                kinds[clean["kind"]] += 1
        writer.done()
    return np.asarray(lengths, dtype=np.int32), kinds


def _finish(folder: Path, shape: str, made: Sequence[Made]) -> Manifest:
    """Merge the writers' indices and write lengths and manifest."""
    from litdata.streaming.writer import BinaryWriter

    if not any(len(lengths) for lengths, _ in made):
        raise UsageError("there are no rows to write")
    BinaryWriter(str(folder), chunk_bytes=ONE_CHUNK).merge(len(made))
    np.save(folder / LENGTHS, np.concatenate([lengths for lengths, _ in made]))
    chunks = [
        {"file": c["filename"], "rows": c["chunk_size"], "bytes": (folder / c["filename"]).stat().st_size, "sha256": sha256_file(folder / c["filename"])}
        for c in read_json(folder / INDEX)["chunks"]
    ]
    kinds = dict(sum((kinds for _, kinds in made), Counter[str]()))
    manifest = Manifest(shape, sum(chunk["rows"] for chunk in chunks), chunks, sha256_file(folder / INDEX), sha256_file(folder / LENGTHS), kinds)
    write_json(folder / MANIFEST, asdict(manifest))
    return manifest


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str) else sum(map(len, value))


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
    if labels := row.get("labels"):  # of the positive and of each negative: texts of one label are never each other's negatives
        if len(labels) != 1 + len(found["negatives"]):
            raise UsageError(f"row {number}: 'labels' has {len(labels)} entries; one for the positive and one per negative are needed")
        found["labels"] = [str(label) for label in labels]
    return {"id": str(row.get("id") or content_id(found)), **found}


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
        self._reader: Any = None

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
        expected = {c["file"]: c["sha256"] for c in self.manifest.chunks} | {INDEX: self.manifest.index, LENGTHS: self.manifest.lengths}
        for chunk in self.manifest.chunks:  # sizes first: cheap, and the commonest damage
            path = self.path / chunk["file"]
            if path.is_file() and path.stat().st_size != chunk["bytes"]:
                raise self._damaged(chunk["file"], f"has {path.stat().st_size} bytes where the manifest says {chunk['bytes']}")
        for name, digest in expected.items():
            if not (self.path / name).is_file():
                raise self._damaged(name, "is missing")
            if sha256_file(self.path / name) != digest:
                raise self._damaged(name, "was changed (its sha256 is not the manifest's)")
        listed = [chunk["filename"] for chunk in read_json(self.path / INDEX)["chunks"]]
        if listed != [chunk["file"] for chunk in self.manifest.chunks] or sum(chunk["rows"] for chunk in self.manifest.chunks) != self.manifest.count:
            raise self._damaged(INDEX, "and the manifest list different chunks")
        return self

    def _damaged(self, name: str, what: str) -> UsageError:
        return UsageError(f"shard file {self.path / name} {what}; write the shards again with `speedlit shard SOURCE --to {self.path}`")

    def __len__(self) -> int:
        return self.manifest.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.small:
            return self.rows()[index]
        return dict(self._open()[range(len(self))[index]])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.small:
            yield from self.rows()
        else:
            reader = self._open()
            for index in range(len(self)):
                yield dict(reader[index])

    def rows(self) -> list[dict[str, Any]]:
        """All rows, read once."""
        if self._rows is None:
            reader = self._open()
            self._rows = [dict(reader[index]) for index in range(len(self))]
        return self._rows

    def lengths(self) -> np.ndarray:
        """Characters per row and text field, shape (rows, fields)."""
        return np.asarray(np.load(self.path / LENGTHS))

    def _open(self) -> Any:
        if self._reader is None:
            from litdata import StreamingDataset

            self._reader = StreamingDataset(str(self.path), shuffle=False)
        return self._reader

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}  # each loader worker opens its own
