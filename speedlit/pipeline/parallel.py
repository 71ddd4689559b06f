"""The same function over several argument sets, in worker processes of one torch thread each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from multiprocessing import get_context
from typing import Any

from speedlit.errors import SpeedlitError
from speedlit.progress import Progress, mute
from speedlit.workers import begin_worker


def in_processes(target: str, jobs: Sequence[Mapping[str, Any]], processes: int, label: str, unit: str = "fits") -> list[Any]:
    """Call ``module:function`` once per job and return the results in the order of the jobs.

    Args:
        target: ``package.module:function``, importable in a fresh process.
        jobs: keyword arguments of each call; plain, picklable values.
        processes: workers; 1 calls the function in this process, with its own progress display.
        label: what is being done.
        unit: what one job is.

    Raises:
        SpeedlitError: a worker died, for instance for want of memory.
    """
    if processes <= 1:
        return [_call(target, dict(job)) for job in jobs]
    results: list[Any] = [None] * len(jobs)
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=begin_worker)
    try:
        futures = {pool.submit(_call, target, {**job, "progress": False}, silent=i > 0): i for i, job in enumerate(jobs)}
        with Progress(label, len(jobs), unit) as progress:
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                progress.advance()
    except BrokenProcessPool as error:
        raise SpeedlitError(f"a worker of {label} died; with too little memory, lower the number of processes. The same command goes on from here") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return results


def _call(target: str, arguments: dict[str, Any], silent: bool = False) -> Any:
    if silent:
        mute()
    module, _, function = target.partition(":")
    return getattr(import_module(module), function)(**arguments)
