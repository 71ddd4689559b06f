"""Stages stream: while they run, only what is in flight is in memory, however many prompts and records there are."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from scripts.bench import streams
from speedlit.context import Reply, Request
from speedlit.records import Prompt, Record, Task, Topic
from speedlit.synthesis.quality import Measures
from speedlit.synthesis.stages import common, refinement, tasks

SIZE = 80
KINDS = (Topic, Task, Prompt, Record, Request)


def alive() -> int:
    """Records, prompts and requests that somebody still holds."""
    return sum(type(thing) in KINDS for thing in gc.get_objects())


class Watching(streams.Writer):
    """A writer that looks around now and then; like a real one, it takes a few requests ahead."""

    def __init__(self, seen: list[int]) -> None:
        self.seen = seen

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        for n, reply in enumerate(super().generate(requests)):
            if n % 20 == 19:
                self.seen.append(alive())
            yield reply


@pytest.fixture
def unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_nothing_piles_up_in_any_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unfrozen: None) -> None:
    monkeypatch.setattr(Measures.__init__, "__defaults__", (None, 5))
    monkeypatch.setattr(refinement, "BLOCK", 5)
    monkeypatch.setattr(tasks, "CELLS", 5)
    monkeypatch.setattr(common, "CHUNK", 5)
    write_rows, seen = tasks.write_rows, dict[str, list[int]]()

    def watched(path: Path, rows: Iterable[Any]) -> int:
        return write_rows(path, looked_at(rows, seen["tasks"]))

    monkeypatch.setattr(tasks, "write_rows", watched)
    (tmp_path / "topics.txt").write_text("".join(f"Field{n % 7}/Topic{n}\n" for n in range(SIZE)))
    gc.collect()
    gc.freeze()  # what other tests left behind is not looked at
    for name in streams.STAGES:
        seen[name] = []
        ctx = streams.context(name, tmp_path, SIZE)
        ctx.backend = lambda role, name=name: Watching(seen[name])
        import_module(f"speedlit.synthesis.stages.{name}").run(ctx)
        del ctx
        gc.collect()
        assert len(seen[name]) >= (name != "topics"), f"{name} was looked at"
        assert max(seen[name], default=0) < 60, f"{name} piles up: {seen[name]}"


def looked_at(rows: Iterable[Any], seen: list[int]) -> Iterator[Any]:
    for n, row in enumerate(rows):
        if n % 20 == 19:
            seen.append(alive())
        yield row


def test_a_flat_set_is_a_set() -> None:
    values = [0, 1, 2**64 - 1, 5, 5 + 64, 5 + 128, 5 + 192]
    flat = tasks.FlatSet(len(values))
    for i, value in enumerate(values):
        assert value not in flat or value == 1  # 0 and 1 share a place: one draw in 2**63 is skipped
        flat.add(value)
        assert all(earlier in flat for earlier in values[: i + 1])
    assert 7 not in flat
