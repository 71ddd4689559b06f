"""Embeddings of a corpus on the disk: in order, every text exactly once, over any number of ranks, going on after a kill.

    OUT/part-00000.parquet    columns id and vector; or part-00000.npy with part-00000.ids.json
    OUT/started.json          model, corpus and settings that the parts belong to
    OUT/manifest.json         rows and sha256 of each part; written when all are there
    OUT/_SUCCESS              last

Part n holds rows n * size to (n + 1) * size and appears under its name only when it is complete; rank n % ranks writes it. A
part that is there is not computed again, so the same command, also on another number of ranks, does what is left.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speedlit.errors import UsageError
from speedlit.evaluation import ranks
from speedlit.evaluation.encoder import Encoder
from speedlit.files import fsync_dir, read_json, sha256_file, whole, write_json
from speedlit.progress import Progress

FORMATS = ("parquet", "npy")
STARTED, MANIFEST, SUCCESS = "started.json", "manifest.json", "_SUCCESS"
Part = dict[str, Any]


def write_embeddings(
    encoder: Encoder,
    rows: Iterable[dict[str, Any]],
    out: Path,
    identity: dict[str, Any],
    *,
    columns: Sequence[str] = ("text",),
    instruction: str | None = None,
    size: int = 16384,
    form: str = "parquet",
) -> dict[str, Any]:
    """Encode the texts of ``rows`` into ``out``; returns the manifest.

    Args:
        encoder: with ``spread=False``: each rank encodes parts of its own.
        rows: the corpus, the same on every rank. A row's id is its ``id`` or ``_id``, else its number.
        out: a new folder, or one that holds some of these parts.
        identity: what the vectors depend on: model, corpus.
        columns: the columns that make the text, joined by a blank; an empty one is left out.
        instruction: puts the texts into the query template.
        size: rows of a part.
        form: parquet or npy.

    Raises:
        UsageError: ``out`` holds something else, there is no row, or a row has no text.
        SpeedlitError: the disk is full, or another rank failed.
    """
    plan = {**identity, "columns": list(columns), "instruction": instruction, "size": size, "format": form}
    error: BaseException | None = None
    try:
        if ranks.number() == 0:
            _begin(out, plan)
    except UsageError as found:
        error = found
    ranks.together(error)
    made: list[Part] = []
    try:
        made = [_part(encoder, part, number, out, plan) for number, part in _own(rows, size)]
    except Exception as found:  # noqa: BLE001 - raised again below, once the others know of it
        error = found
    ranks.together(error)
    parts = sorted((part for own in ranks.everyone(made) for part in own), key=lambda part: str(part["name"]))
    if not parts:
        raise UsageError("the corpus is empty: at least one row is needed")
    manifest = {**plan, "rows": sum(part["rows"] for part in parts), "parts": parts}
    if ranks.number() == 0:
        write_json(out / MANIFEST, manifest)
        (out / SUCCESS).touch()
        fsync_dir(out)
    return manifest


def _begin(out: Path, plan: dict[str, Any]) -> None:
    """Claim the folder, and clear away what a killed process left half written."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder for the embeddings")
    if (out / STARTED).is_file():
        held = read_json(out / STARTED)
        if changed := [key for key in plan if held.get(key) != plan[key]]:
            raise UsageError(f"{out} holds embeddings with another {changed[0]} ({held.get(changed[0])}, now {plan[changed[0]]}): name a new folder")
    elif out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty and holds no embeddings of this command: name a new folder")
    write_json(out / STARTED, plan)
    (out / SUCCESS).unlink(missing_ok=True)
    for stale in out.glob(".part-*.tmp"):
        stale.unlink()


def _own(rows: Iterable[dict[str, Any]], size: int) -> Iterator[tuple[int, list[tuple[int, dict[str, Any]]]]]:
    """The parts of this rank, each with its rows and their numbers; the others' rows are read and passed over."""
    numbered = enumerate(rows)
    for number in itertools.count():
        part = list(itertools.islice(numbered, size))
        if not part:
            return
        if number % ranks.size() == ranks.number():
            yield number, part


def _part(encoder: Encoder, rows: list[tuple[int, dict[str, Any]]], number: int, out: Path, plan: dict[str, Any]) -> Part:
    """Write one part unless it is there and whole."""
    path = out / f"part-{number:05d}.{plan['format']}"
    if _count(path) != len(rows):
        texts = [_text(number, row, plan["columns"]) for number, row in rows]
        ids = [str(row.get("id", row.get("_id", number))) for number, row in rows]
        _write(path, ids, encoder.vectors(texts, plan["instruction"]))
    return {"name": path.name, "rows": len(rows), "sha256": sha256_file(path)}


def _text(number: int, row: dict[str, Any], columns: Sequence[str]) -> str:
    for name in columns:
        if name not in row:
            raise UsageError(f"row {number + 1} of the corpus has no column {name!r}; it has: {', '.join(map(str, row))} (choose with --text)")
        if row[name] is not None and not isinstance(row[name], str):
            raise UsageError(f"row {number + 1} of the corpus: column {name!r} holds {type(row[name]).__name__}, not a text")
    return " ".join(row[name] for name in columns if row[name])


def _count(path: Path) -> int | None:
    """Rows of a part that is there and readable."""
    if not path.is_file():
        return None
    try:
        if path.suffix == ".npy":
            return len(np.load(path, mmap_mode="r"))
        import pyarrow.parquet as pq

        return int(pq.read_metadata(path).num_rows)
    except (ValueError, OSError):  # damaged, so it is written again
        return None


def _write(path: Path, ids: list[str], vectors: np.ndarray) -> None:
    if path.suffix == ".npy":
        with whole(path.with_suffix(".ids.json")) as temporary:
            temporary.write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
        with whole(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, vectors)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    with whole(path) as temporary:
        pq.write_table(pa.table({"id": pa.array(ids), "vector": flat}), temporary, compression="none", use_dictionary=False)


def encode_corpus(encoder: Encoder, rows: Iterable[dict[str, Any]], out: Path, identity: dict[str, Any], **options: Any) -> dict[str, Any]:
    """``write_embeddings`` with a bar on the first rank."""
    if ranks.number():
        return write_embeddings(encoder, rows, out, identity, **options)
    with Progress("predict", None, "texts") as bar:
        return write_embeddings(encoder, _watched(rows, bar), out, identity, **options)


def _watched(rows: Iterable[dict[str, Any]], bar: Any) -> Iterator[dict[str, Any]]:
    for row in rows:
        bar.advance()
        yield row
