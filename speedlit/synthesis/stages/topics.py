"""Stage ``topics``: where the variety comes from. A file with one path a line, or the embedded teacher's world."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from speedlit.context import Context
from speedlit.errors import UsageError
from speedlit.records import Topic, write_rows

NONE = "topics.file is not set and this teacher has no topics of its own: give a text file with one topic path a line (--topics FILE)"
ROOT = "Top/"  # the Open Directory's root, which says nothing


def run(ctx: Context) -> None:
    """Write ``topics.jsonl``: truncated, distinct, in the order of the source.

    Raises:
        UsageError: no source is named, or the file is missing, not UTF-8 or empty.
    """
    file, depth = ctx.config["topics"].get("file"), ctx.config["topics"].get("depth", 4)
    if file is not None:
        given, source = list(read_topics(Path(file))), Path(file).name
    elif ctx.checker is not None:
        given, source = ctx.checker("topics", None)["topics"], "world"
    else:
        raise UsageError(NONE)
    paths = list(dict.fromkeys(truncate(path, depth) for path in given))
    ctx.ledger.accepted = write_rows(ctx.out / "topics.jsonl", (Topic(path, source) for path in paths))
    if len(given) > len(paths):
        ctx.ledger.reject("duplicate_after_truncation", len(given) - len(paths))


def read_topics(path: Path) -> Iterator[str]:
    """Yield the topic paths of a file.

    Raises:
        UsageError: missing, unreadable, not UTF-8, or without a single topic.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"topics.file {path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise UsageError(f"cannot read topics.file {path}: {error.strerror or error}") from error
    topics = clean(lines)
    if not topics:
        raise UsageError(f"topics.file {path} is empty: it needs one topic path a line, such as Arts/Movies/Titles")
    yield from topics


def clean(lines: Iterable[str]) -> list[str]:
    """Paths without blanks around them, empty levels, comments and the directory's root."""
    stripped = (line.strip() for line in lines)
    levels = ("/".join(part.strip() for part in line.split("/") if part.strip()) for line in stripped if line and not line.startswith("#"))
    return [path.removeprefix(ROOT) for path in levels if path and path != ROOT.strip("/")]


def truncate(path: str, depth: int) -> str:
    """Drop the middle levels of a path deeper than ``depth`` (paper D.1).

    ``Arts/Movies/Titles/3/36_Hours_-_1964/Cast_and_Crew`` becomes ``Arts/Movies/36_Hours_-_1964/Cast_and_Crew`` at depth 4.
    """
    levels = path.split("/")
    if depth < 1 or len(levels) <= depth:
        return path
    head = (depth + 1) // 2
    return "/".join(levels[:head] + levels[len(levels) - (depth - head) :])
