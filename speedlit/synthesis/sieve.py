"""Which records of a file stay: read once in worker processes, decided over arrays, in the order of the run.

A worker reads one stretch of the file and leaves three files beside each other: the records, shortened and in the order of the run
(``spill``), the hashes of their bands (``bands``) and of their word runs (``runs``). The process that decides keeps one row of
``TABLE`` per record, about 70 bytes, and needs nothing else in memory, so a million records take little more than ten thousand.
"""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speedlit.files import remove
from speedlit.progress import Progress
from speedlit.records import Record
from speedlit.synthesis.filters import ContaminationFilter
from speedlit.synthesis.hashing import encode, order_key, runs, whole
from speedlit.synthesis.lines import STRETCH, Stretch, number, rows, stretches
from speedlit.synthesis.near import SHINGLE, near_duplicates, sketches
from speedlit.synthesis.quality import fault_of
from speedlit.workers import in_order

BATCH = 1000  # records that are hashed together
MOST = 256  # stretches of one file; a larger file is cut into longer ones
TABLE = np.dtype(
    [
        ("key", "u8"), ("index", "i4"),  # the order of the run: by a hash of seed and prompt, then by sample
        ("id", "u8"), ("prompt", "u8"), ("text", "u8"),  # ids, and the hash of all texts
        ("row", "i8"), ("line", "i8"),  # place in the file: row, and byte
        ("chunk", "i4"), ("spilled", "i8"), ("bytes", "i4"),  # place in the spill
        ("run", "i8"), ("runs", "i4"),  # place in the runs
        ("fault", "u1"), ("contaminated", "?"),  # 0: none, else 1 + index into the reasons
    ]
)  # fmt: skip
Table = NDArray[Any]
DUPLICATE, CONTAMINATED, NEAR = "duplicate", "contaminated", "near_duplicate"


@dataclass(frozen=True)
class Sieve:
    """What a worker has to know.

    Attributes:
        path: the records.
        work: folder of the working files.
        seed: the run's seed.
        filters: the ``filters`` section of the run.
        prompts: sorted ids of the prompts whose records are wanted (.npy).
        protected: hashes of the evaluation texts (.npy), or None.
    """

    path: Path
    work: Path
    seed: int
    filters: Mapping[str, Any]
    prompts: Path
    protected: Path | None = None


@dataclass
class Sieved:
    """All records of a file in the order of the run, and the reasons that ``fault`` counts from 1."""

    table: Table
    reasons: list[str] = field(default_factory=list)

    @property
    def kept(self) -> NDArray[np.int64]:
        """Rows of the table without a fault."""
        return np.flatnonzero(self.table["fault"] == 0)

    def dropped(self) -> Iterator[tuple[int, str]]:
        """Id and reason of each record that is left out."""
        for row in np.flatnonzero(self.table["fault"]):
            yield int(self.table["id"][row]), self.reasons[self.table["fault"][row] - 1]

    def mark(self, rows: Any, reason: str) -> None:
        """Leave records out."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        self.table["fault"][rows] = self.reasons.index(reason) + 1


def sift(sieve: Sieve, label: str) -> Sieved:
    """Read the file, and decide about every record."""
    remove(sieve.work)
    sieve.work.mkdir(parents=True)
    cut = stretches(sieve.path, max(STRETCH, -(-sieve.path.stat().st_size // MOST) if sieve.path.exists() else 0))
    tables, faults, lines, counts = [np.zeros(0, TABLE)], list[tuple[int, str]](), 0, list[int]()
    with Progress(label, len(cut), "stretches") as progress:
        for table, found, read in in_order(partial(scan, sieve), enumerate(cut)):
            table["row"] += lines
            faults += [(sum(counts) + row, reason) for row, reason in found]
            lines, counts = lines + read, [*counts, len(table)]
            tables.append(table)
            progress.advance()
    table = np.concatenate(tables)
    del tables
    order = np.lexsort((table["index"], table["key"]))
    sieved = Sieved(table[order])
    del table
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    for row, reason in faults:
        sieved.mark(back[row], reason)
    decide(sieved, sieve, order, counts)
    return sieved


def decide(sieved: Sieved, sieve: Sieve, order: NDArray[np.int64], counts: Sequence[int]) -> None:
    """Mark copies, contaminated records and near-duplicates; of records that resemble each other the first in the run's order stays."""
    table = sieved.table
    if sieve.filters.get("exact", True):
        rows = sieved.kept
        repeated = np.ones(len(rows), bool)
        repeated[np.unique(table["text"][rows], return_index=True)[1]] = False
        sieved.mark(rows[repeated], DUPLICATE)
    sieved.mark(np.flatnonzero((table["fault"] == 0) & table["contaminated"]), CONTAMINATED)
    threshold = sieve.filters.get("minhash_threshold")
    if not threshold:
        return
    rows = sieved.kept
    places, starts = order[rows], np.cumsum([0, *counts])
    with ExitStack() as stack:
        files = [stack.enter_context((sieve.work / f"runs-{chunk}").open("rb")) for chunk in range(len(counts))]

        def band(which: int) -> NDArray[np.uint64]:
            column = np.empty(starts[-1], np.uint64)
            for chunk, count in enumerate(counts):
                if not count:
                    continue
                column[starts[chunk] : starts[chunk + 1]] = np.fromfile(sieve.work / f"bands-{chunk}", np.uint64, count, offset=8 * which * count)
            return column[places]

        def runs_of(rank: int) -> NDArray[np.uint32]:
            row = table[rows[rank]]
            return np.frombuffer(os.pread(files[row["chunk"]].fileno(), 4 * int(row["runs"]), 4 * int(row["run"])), np.uint32)

        sieved.mark(rows[near_duplicates(len(rows), band, runs_of, threshold)], NEAR)


def scan(sieve: Sieve, job: tuple[int, Stretch]) -> tuple[Table, list[tuple[int, str]], int]:
    """Read one stretch.

    Returns:
        A row per record, what is wrong with single records by row, and how many lines there were.
    """
    chunk, stretch = job
    known = np.load(sieve.prompts, mmap_mode="r")
    protected = ContaminationFilter.load(sieve.protected, sieve.filters["ngram"]) if sieve.protected else None
    threshold = sieve.filters.get("minhash_threshold")
    tables, spills, bands, faults, lines, written = [np.zeros(0, TABLE)], list[bytes](), list[Any](), list[tuple[int, str]](), 0, 0
    source = enumerate(rows(sieve.path, stretch))
    with (sieve.work / f"runs-{chunk}").open("wb") as stream:
        while batch := list(itertools.islice(source, BATCH)):
            lines = batch[-1][0] + 1
            places = [(row, line, number(raw.get("id")), Record.from_json(raw)) for row, (line, raw) in batch]
            ids = np.array([number(record.prompt_id) for *_, record in places], np.uint64)
            wanted = np.flatnonzero(is_in(ids, known))
            records = [places[i][3] for i in wanted]
            if not records:
                continue
            table = np.zeros(len(records), TABLE)
            table["chunk"], table["prompt"] = chunk, ids[wanted]
            table["row"], table["line"], table["id"] = (np.array([places[i][column] for i in wanted], dtype) for column, dtype in enumerate(("i8", "i8", "u8")))
            table["key"] = [order_key(sieve.seed, record.prompt_id) for record in records]
            table["index"] = [record.index for record in records]
            faults += [(len(spills) + i, reason) for i, record in enumerate(records) if (reason := fault_of(record, sieve.filters))]
            packed = [pickle.dumps(shortened(record), 5) for record in records]
            table["bytes"] = [len(data) for data in packed]
            spills += packed
            tokens, bounds = encode([text for record in records for text in (record.query, record.positive, *record.negatives)])
            first = np.cumsum([0, *(2 + len(record.negatives) for record in records)])
            table["text"] = whole(tokens, bounds[first[:-1]], bounds[first[1:]])
            if protected:
                table["contaminated"] = np.logical_or.reduceat(protected.hits(tokens, bounds[:-1], bounds[1:]), first[:-1])
            if threshold:
                shingles, begin = runs(tokens, bounds[first[:-1]], bounds[first[:-1] + 2], SHINGLE)  # of query and positive
                table["run"], table["runs"] = written + begin[:-1], np.diff(begin)
                written += len(shingles)
                stream.write(shingles.astype(np.uint32).tobytes())
                bands.append(sketches(shingles, begin, threshold))
            tables.append(table)
    if bands:
        np.concatenate(bands).T.tofile(sieve.work / f"bands-{chunk}")
    table = np.concatenate(tables)
    table["spilled"] = spill(sieve.work / f"spill-{chunk}", table, spills)
    return table, faults, lines


def spill(path: Path, table: Table, packed: Sequence[bytes]) -> NDArray[np.int64]:
    """Write records in the order of the run, so that later a part of that order is one stretch of each spill; returns where each begins."""
    order = np.lexsort((table["index"], table["key"]))
    places = np.empty(len(order), np.int64)
    places[order] = np.cumsum(table["bytes"][order], dtype=np.int64) - table["bytes"][order]
    with path.open("wb") as stream:
        stream.writelines(packed[i] for i in order)
    return places


def shortened(record: Record) -> tuple[Any, ...]:
    """What a triplet takes from a record."""
    return record.kind, record.instruction, record.query, record.positive, record.negatives, record.generation_id


def spilled(work: Path, table: Table) -> list[tuple[Any, ...]]:
    """The shortened records of some rows, in their order."""
    found: list[Any] = [None] * len(table)
    for chunk in np.unique(table["chunk"]):
        with (work / f"spill-{chunk}").open("rb") as stream:
            for row in np.flatnonzero(table["chunk"] == chunk):
                stream.seek(int(table["spilled"][row]))
                found[row] = pickle.loads(stream.read(int(table["bytes"][row])))  # noqa: S301 (written above, by this very run)
    return found


def is_in(values: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which values are in a sorted array."""
    if not len(known):
        return np.zeros(len(values), bool)
    return np.asarray(known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values)
