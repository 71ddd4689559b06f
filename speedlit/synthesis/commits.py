"""Group commits: events of many requests share one transaction of the journal. This is also where a budget holds requests back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from speedlit.errors import SpeedlitError
from speedlit.synthesis.budget import Budget
from speedlit.synthesis.journal import Event, Journal

PAUSE = 0.5  # seconds until the budget is looked at again, when only other processes can make room in it
Waiter = tuple[Event, asyncio.Future[None]]


class Commits:
    """A journal for many tasks of one event loop; its disk work is done in a thread of its own.

    Args:
        journal: where events are written.
        budget: decides which ``sent`` events may be written, and so which requests may leave; None: all.
        progress: requests that are answered, and how many there are (None: unknown), for the sentence at the end of a budget.
    """

    def __init__(self, journal: Journal, budget: Budget | None = None, progress: Callable[[], tuple[int, int | None]] = lambda: (0, None)) -> None:
        self._journal, self._budget, self._progress = journal, budget, progress
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._events: list[Waiter] = []
        self._held: list[Waiter] = []
        self._flying: set[str] = set()
        self._flushing: asyncio.Task[None] | None = None

    async def answers(self, keys: Iterable[str]) -> dict[str, str]:
        """Raw bodies of those ``keys`` that were answered."""
        found: dict[str, str] = await self._run(self._journal.answers, list(keys))
        return found

    async def write(self, event: Event) -> None:
        """Return once the event is on the disk; all that come up meanwhile share the next transaction.

        A ``sent`` event that might pass the budget waits until others have settled.

        Raises:
            BudgetSpent: nothing is in flight any more, and it would still pass the budget.
            SpeedlitError: it could not be written.
        """
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self._events.append((event, done))
        if self._flushing is None or self._flushing.done():
            self._flushing = loop.create_task(self._flush())
        await done

    def left(self, key: str) -> None:
        """The attempt of ``key`` has ended, however it did."""
        self._flying.discard(key)

    def close(self) -> None:
        """End the thread; the journal stays open."""
        self._disk.shutdown()

    async def _flush(self) -> None:
        while self._events:
            batch = [pair for pair in self._held if not pair[1].done()] + self._events
            self._events, self._held, failure = [], [], None
            try:
                refused = await self._append([event for event, _ in batch])
            except SpeedlitError as error:
                failure, refused = error, []
            self._held = [pair for pair in batch if any(pair[0] is event for event in refused)]
            written = [pair for pair in batch if pair not in self._held] if self._held else batch
            for event, done in written:
                self._count(event)
                _end(done, failure)
            if self._held and any(event.event != "sent" for event, _ in written):
                self._events, self._held = self._held + self._events, []  # what has just settled may have made room
            elif self._held and not self._flying:
                await self._out_of_room()

    async def _append(self, events: Sequence[Event]) -> list[Event]:
        if self._budget is None:
            await self._run(self._journal.append, events)
            return []
        refused: list[Event] = await self._run(self._budget.admit, events, self._journal.append)
        return refused

    def _count(self, event: Event) -> None:
        if event.event == "sent":
            self._flying.add(event.key)
        else:
            self._flying.discard(event.key)

    async def _out_of_room(self) -> None:
        """Nothing of ours is in flight and still nothing fits: other processes may make room, else this is the end."""
        assert self._budget is not None
        first = self._held[0][0]
        if await self._run(self._budget.others_may_settle, first):
            await asyncio.sleep(PAUSE)
            self._events, self._held = self._held + self._events, []
            return
        error = await self._run(self._budget.refusal, first, *self._progress())
        for _, done in self._held:
            _end(done, error)
        self._held = []

    async def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._disk, function, *args)


def _end(done: asyncio.Future[None], failure: SpeedlitError | None) -> None:
    if done.done():
        return
    if failure:
        done.set_exception(failure)
    else:
        done.set_result(None)
