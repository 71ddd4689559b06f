"""Worker processes: how each of them begins, and one function over many jobs with the results in order.

A worker has one torch thread, is deaf to Ctrl-C, and never outlives its run.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from speedlit.errors import SpeedlitError

J = TypeVar("J")
R = TypeVar("R")
MOST = 8  # worker processes; more only wait for the one that reads and writes


def begin_worker() -> None:
    """Call first in a spawned worker process that computes with torch."""
    begin_light_worker()
    import torch

    torch.set_num_threads(1)


def begin_light_worker() -> None:
    """Call first in a spawned worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's to handle: it closes its workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"


def _die_with_parent() -> None:
    """A run that is killed must not leave workers behind: they would go on writing into its folders."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def cores() -> int:
    """Cores that this process may use, at most ``MOST``."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, MOST)


def in_order(function: Callable[[J], R], jobs: Iterable[J], processes: int | None = None) -> Iterator[R]:
    """Yield ``function(job)`` for each job, in order; a few jobs are worked on ahead of the one handed out.

    Args:
        function: importable in a fresh process; a ``partial`` of such a one will do.
        jobs: picklable arguments.
        processes: workers; None takes one per core. A single job, or one process, is done in this process.

    Raises:
        SpeedlitError: a worker died, for instance for want of memory.
    """
    source = iter(jobs)
    first = list(itertools.islice(source, 2))
    workers = cores() if processes is None else processes
    if workers <= 1 or len(first) < 2:
        yield from map(function, itertools.chain(first, source))
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=begin_light_worker)
    waiting: deque[Future[R]] = deque()
    try:
        for job in itertools.chain(first, source):
            waiting.append(pool.submit(function, job))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise SpeedlitError("a worker process died, most likely for want of memory: free some and start again") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
