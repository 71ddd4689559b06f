"""A study from its beginning to its tables: one process per root, cells that are there are not trained again."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from speedlit.errors import UsageError
from speedlit.files import write_json, write_jsonl
from speedlit.pipeline.config import RunConfig
from speedlit.pipeline.loop import locked
from speedlit.pipeline.services import Services
from speedlit.study.room import Room, check_run

KINDS = ("scaling", "ablation", "cross-model")


def study(kind: str, config: RunConfig) -> dict[str, Any]:
    """Do a study of the run in ``config.root``; writes ``study/KIND/results.jsonl`` and ``summary.json``, and returns the summary.

    Raises:
        UsageError: no such study, no run there, a run that has not come far enough, or settings that cannot be.
        SpeedlitError: another study is at work in the same root, or a worker died.
    """
    if kind not in KINDS:
        raise UsageError(f"no study {kind!r}; there are {', '.join(KINDS)}")
    root = Path(config.root)
    check_run(root, config.plain())
    with locked(root, "study/.lock", f"another study is at work in {root}; wait for it"), Services(config, root) as services:
        start, cpu = time.monotonic(), cpu_seconds()
        room = Room(kind, config, services)
        perform: Callable[[Room], dict[str, Any]] = import_module(f"speedlit.study.{kind.replace('-', '_')}").run
        found = perform(room)
        rows = found["cells"]
        found["cells"] = [{key: value for key, value in row.items() if key != "queries"} for row in rows]
        found["seconds"] = {
            "this_run": round(time.monotonic() - start, 1),
            "cells": round(sum(row["seconds"] for row in rows), 1),
            "cells_cpu": round(sum(row["cpu_seconds"] for row in rows), 1),
            "this_run_cpu": round(cpu_seconds() - cpu, 1),
        }
        found = {"kind": kind, "settings": room.study, **found}
        write_jsonl(room.folder / kind / "results.jsonl", rows)
        write_json(room.folder / kind / "summary.json", found)
    return found


def cpu_seconds() -> float:
    """CPU seconds of this process and of its ended workers."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
