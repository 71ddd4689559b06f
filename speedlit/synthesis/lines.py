"""Large JSON-lines files: in stretches for worker processes, line by line at a place, and joined by order. Never a whole file in memory."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from speedlit.errors import SpeedlitError, UsageError
from speedlit.records import Prompt, Record

STRETCH = 32 << 20  # bytes of a file that one job reads
Stretch = tuple[int, int]
R = TypeVar("R", bound=Any)


def stretches(path: Path, size: int | None = None) -> list[Stretch]:
    """Cut a file into byte ranges; a line belongs to the range in which it begins.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        total = path.stat().st_size
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    step = size or STRETCH
    return [(start, min(start + step, total)) for start in range(0, total, step)]


def rows(path: Path, stretch: Stretch | None = None, skip: Callable[[bytes], bool] = bytes.isspace) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a stretch, or of the whole file, each with the byte at which its line begins.

    Args:
        path: the file.
        stretch: a range of bytes.
        skip: which lines are passed over unread; blank ones always are.

    Raises:
        UsageError: the file cannot be read, or a line is no JSON object.
    """
    try:
        stream = path.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    with stream:
        start, stop = stretch or (0, os.fstat(stream.fileno()).st_size)
        if start:
            stream.seek(start - 1)
            start += len(stream.readline()) - 1  # the rest of a line that began before
        while start < stop and (line := stream.readline()):
            if not skip(line) and not line.isspace():
                yield start, parse(path, start, line)
            start += len(line)


def parse(path: Path, start: int, line: bytes) -> dict[str, Any]:
    """The JSON object of one line.

    Raises:
        UsageError: it is something else.
    """
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{path}: the line at byte {start} is not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise UsageError(f"{path}: the line at byte {start} is not a JSON object but {type(row).__name__}")
    return row


class Lines:
    """A JSON-lines file whose rows are read at their byte offsets."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Lines:
        self._stream = self.path.open("rb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.close()

    def __getitem__(self, start: int) -> dict[str, Any]:
        self._stream.seek(start)
        return parse(self.path, start, self._stream.readline())


def count_lines(path: Path) -> int:
    """How many lines a file has."""
    with path.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))


def number(identity: Any) -> int:
    """An id of 16 hex digits as a number of 64 bits.

    Raises:
        UsageError: it is none.
    """
    try:
        if len(identity) == 16:
            return int(identity, 16)
    except (ValueError, TypeError):
        pass
    raise UsageError(f"{identity!r} is no record id (16 hex digits): the file was not written by this version of speedlit")


def spelled(value: int) -> str:
    """The id of a number."""
    return f"{value:016x}"


def with_prompts(records: Iterable[R], prompts: Iterable[Prompt], where: str) -> Iterator[tuple[R, Prompt]]:
    """Join records (anything with a ``prompt_id``) to their prompts; both come in the same order of prompts, so one pass will do.

    Raises:
        SpeedlitError: a record's prompt is not there, or the order is another one.
    """
    source = iter(prompts)
    prompt: Prompt | None = None
    prompt_id = ""
    for record in records:
        while record.prompt_id != prompt_id:
            prompt = next(source, None)
            if prompt is None:
                raise out_of_order(where, record.prompt_id)
            prompt_id = prompt.id
        assert prompt is not None
        yield record, prompt


def grouped(prompts: Iterable[Prompt], records: Iterable[Record], where: str) -> Iterator[tuple[Prompt, list[Record]]]:
    """Each prompt with its records, none or several; both come in the same order of prompts.

    Raises:
        SpeedlitError: a record's prompt is not there, or the order is another one.
    """
    groups = itertools.groupby(records, key=lambda record: record.prompt_id)
    ahead = next(groups, None)
    for prompt in prompts:
        group: list[Record] = []
        if ahead is not None and ahead[0] == prompt.id:
            group = list(ahead[1])
            ahead = next(groups, None)
        yield prompt, group
    if ahead is not None:
        raise out_of_order(where, ahead[0])


def out_of_order(where: str, prompt_id: str) -> SpeedlitError:
    """The one sentence for files that do not belong together."""
    return SpeedlitError(f"{where}: the prompt {prompt_id} is not among the run's prompts, or out of order; redo the stage that wrote it with --from")
