"""Progress of long work: one live view on a terminal, a plain line every ten seconds elsewhere; and notices, each said once.

Pieces of work that are begun inside one another (a run, its stage) share the view, a line each. What is printed meanwhile stands above it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

REFRESH = 0.1  # seconds between two looks at a line of the live view
_view: Any = None
_lines = 0
_said: set[str] = set()
_muted = False


class Progress:
    """Counts towards a total and shows it.

    Args:
        label: what is being done, for a person.
        total: how many units, or None when unknown.
        unit: what one unit is.
        every: seconds between plain lines when standard error is not a terminal; infinity shows none.
        start: units that an earlier attempt has done.
        even: whether units take about the same time, so that a rate and the time left mean something.
    """

    def __init__(self, label: str, total: int | None = None, unit: str = "", every: float = 10.0, start: int = 0, even: bool = True) -> None:
        self.label, self.total, self.unit, self.every, self.even = label, total, unit, every, even
        self.done = self.begun = start
        self.note: str | Callable[[], str] = ""
        self._start = self._last = time.monotonic()
        self._task: Any = None

    def advance(self, count: int = 1, note: str | Callable[[], str] | None = None) -> None:
        """Add ``count`` finished units; ``note`` is a short live figure such as a loss, or makes one when a line is drawn."""
        self.done += count
        if note is not None:
            self.note = note
        now = time.monotonic()
        if now - self._last < (self.every if self._task is None else REFRESH):
            return
        self._last = now
        if self._task is None:
            print(f"  {self.line()}", file=sys.stderr, flush=True)
        else:
            self.draw()

    def draw(self) -> None:
        """Bring the line of the live view up to date."""
        if self._task is not None:
            _view.update(self._task, completed=self.done, count=self.count(), tail=self.tail())

    def count(self) -> str:
        """How much of what."""
        of = f"/{self.total:,}" if self.total else ""
        return f"{self.done:,}{of} {self.unit}".rstrip()

    def tail(self) -> str:
        """Rate, time left, and the note."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = (self.done - self.begun) / seconds
        words = [clock(seconds)] if not self.even else [f"{rate:.1f}/s"] if rate >= 0.1 or not rate else [f"{clock(1 / rate)} each"]
        if self.even and self.total and self.done - self.begun >= max(1, 0.02 * self.total):  # earlier, it would be a guess
            words.append(f"{clock(max(self.total - self.done, 0) / rate)} left")
        note = self.note if isinstance(self.note, str) else self.note()
        return ", ".join([*words, *([note] if note else [])])

    def line(self) -> str:
        """One line: label, count, rate, time left."""
        return f"{self.label}: {self.count()} ({self.tail()})"

    def __enter__(self) -> Progress:
        global _view, _lines
        if _lines or sys.stderr.isatty():
            _view = _view or _opened()
            _lines += 1
            self._task = _view.add_task(self.label, total=self.total, completed=self.done, count=self.count(), tail="")
        return self

    def __exit__(self, *_: object) -> None:
        global _view, _lines
        if self._task is None:
            return
        _view.remove_task(self._task)
        self._task = None
        _lines -= 1
        if not _lines:
            _view.stop()
            _view = None


def _opened() -> Any:
    """A live view on standard error. What goes to standard output is left alone where that is a file."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    texts = [TextColumn(form, markup=False) for form in ("  {task.description}", "{task.fields[count]}", "{task.fields[tail]}")]
    bars = Bars(texts[0], BarColumn(20), *texts[1:], console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty())
    bars.start()
    return bars


def clock(seconds: float) -> str:
    """``42 s``, ``3:07`` (minutes), ``2:03:07`` (hours)."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def say(text: str) -> None:
    """A notice for a person; the same one a second time, and those of a muted worker, are not shown."""
    if not _muted and text not in _said:
        _said.add(text)
        print(f"  {text}", file=sys.stderr, flush=True)


def mute() -> None:
    """No notices from this process: another one does the same work and tells."""
    global _muted
    _muted = True


@contextmanager
def timed() -> Iterator[list[float]]:
    """A one-element list that holds the seconds once the block ends."""
    out = [0.0]
    start = time.monotonic()
    try:
        yield out
    finally:
        out[0] = time.monotonic() - start
