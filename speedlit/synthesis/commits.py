"""Group commits: events of many requests share one transaction of the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from speedlit.errors import SpeedlitError
from speedlit.synthesis.journal import Event, Journal


class Commits:
    """A journal for many tasks of one event loop; its disk work is done in a thread of its own."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._events: list[tuple[Event, asyncio.Future[None]]] = []
        self._flushing: asyncio.Task[None] | None = None

    async def answers(self, keys: Iterable[str]) -> dict[str, str]:
        """Raw bodies of those ``keys`` that were answered."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, self._journal.answers, list(keys))

    async def write(self, event: Event) -> None:
        """Return once the event is on the disk; all that come up meanwhile share the next transaction.

        Raises:
            SpeedlitError: it could not be written.
        """
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self._events.append((event, done))
        if self._flushing is None or self._flushing.done():
            self._flushing = loop.create_task(self._flush())
        await done

    def close(self) -> None:
        """End the thread; the journal stays open."""
        self._disk.shutdown()

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._events:
            batch, self._events = self._events, []
            failure: SpeedlitError | None = None
            try:
                await loop.run_in_executor(self._disk, self._journal.append, [event for event, _ in batch])
            except SpeedlitError as error:
                failure = error
            for _, done in batch:
                if done.done():
                    continue
                if failure:
                    done.set_exception(failure)
                else:
                    done.set_result(None)
