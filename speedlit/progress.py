"""Progress of long work: a live bar on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Progress:
    """Counts towards a total and shows it.

    Args:
        label: what is being done, for a person.
        total: how many units, or None when unknown.
        unit: what one unit is.
        every: seconds between plain lines when standard error is not a terminal.
    """

    def __init__(self, label: str, total: int | None = None, unit: str = "", every: float = 10.0) -> None:
        self.label, self.total, self.unit, self.every = label, total, unit, every
        self.done = 0
        self.note = ""
        self._start = self._last = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Add ``count`` finished units; ``note`` is a short live figure such as a loss."""
        self.done += count
        if note is not None:
            self.note = note
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self.note)
        elif time.monotonic() - self._last >= self.every:
            self._last = time.monotonic()
            print(f"  {self.line()}", file=sys.stderr, flush=True)

    def line(self) -> str:
        """One line: label, count, rate, time left."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = self.done / seconds
        of = f"/{self.total}" if self.total else ""
        left = f", {max(self.total - self.done, 0) / rate:.0f} s left" if self.total and rate else ""
        note = f", {self.note}" if self.note else ""
        return f"{self.label}: {self.done}{of} {self.unit}".rstrip() + f" ({rate:.1f}/s{left}{note})"

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, note="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@contextmanager
def timed() -> Iterator[list[float]]:
    """A one-element list that holds the seconds once the block ends."""
    out = [0.0]
    start = time.monotonic()
    try:
        yield out
    finally:
        out[0] = time.monotonic() - start
