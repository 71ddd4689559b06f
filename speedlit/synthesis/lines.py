"""Large JSON-lines files: in stretches for worker processes, line by line at a place, and joined by order. Never a whole file in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
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


def rows(path: Path, stretch: Stretch | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a stretch, each with the byte at which its line begins; blank lines are passed over.

    Raises:
        UsageError: a line is no JSON object.
    """
    start, stop = stretch or (0, path.stat().st_size)
    with path.open("rb") as stream:
        if start:
            stream.seek(start - 1)
            start += len(stream.readline()) - 1  # the rest of a line that began before
        while start < stop and (line := stream.readline()):
            if not line.isspace():
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


def number(identity: str) -> int:
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
                raise SpeedlitError(f"{where}: the prompt {record.prompt_id} is not among the run's prompts, or out of order; redo that stage with --from")
            prompt_id = prompt.id
        assert prompt is not None
        yield record, prompt


def by_prompt(records: Iterable[Record]) -> Iterator[tuple[str, list[Record]]]:
    """Records of the same prompt together; they stand one after the other."""
    group: list[Record] = []
    for record in records:
        if group and record.prompt_id != group[0].prompt_id:
            yield group[0].prompt_id, group
            group = []
        group.append(record)
    if group:
        yield group[0].prompt_id, group
