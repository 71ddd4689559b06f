"""What a stage is given: its inputs, its folder, its config, and a ledger to count in. Light: no torch."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. ``seed`` and the request's sample index make it reproducible."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 800
    seed: int | None = None


@dataclass(frozen=True)
class Request:
    """One question to a teacher or a generator.

    Attributes:
        id: the caller's key.
        index: tells samples of one prompt apart.
        schema: JSON schema that the answer is to be kept to while it is written, where that is switched on.
    """

    id: str
    messages: Sequence[Mapping[str, str]]
    sampling: Sampling
    index: int = 0
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Reply:
    """One answer. ``error`` is a reason when no answer could be had (then ``text`` is empty)."""

    id: str
    index: int
    text: str
    finish_reason: str = "stop"
    tokens_in: int = 0
    tokens_out: int = 0
    cached: bool = False
    error: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """A writer of answers: an OpenAI-compatible server or a local model. Replies come in the order of the requests."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Answer every request, in order."""
        ...

    def close(self) -> None:
        """Free sockets, processes and memory."""
        ...


@dataclass
class Ledger:
    """What a stage did. Ends up in the manifest and in summary.json.

    Attributes:
        calls: answers of the teacher, ``cached`` of them out of the journal.
        generated: answers of local models.
        tokens_in: tokens of all prompts, ``tokens_out`` of all answers.
        accepted: records that passed.
        rejected: refused items by reason.
        notes: other figures of the stage.
    """

    calls: int = 0
    cached: int = 0
    generated: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    notes: dict[str, Any] = field(default_factory=dict)

    def reply(self, reply: Reply, role: str = "teacher") -> None:
        """Count one reply and its tokens."""
        if role == "teacher":
            self.calls += 1
        else:
            self.generated += 1
        self.cached += reply.cached
        self.tokens_in += reply.tokens_in
        self.tokens_out += reply.tokens_out

    def reject(self, reason: str, count: int = 1) -> None:
        """Count a refused item under its reason."""
        self.rejected[reason] += count

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for the manifest."""
        return {
            **{k: getattr(self, k) for k in ("calls", "cached", "generated", "tokens_in", "tokens_out", "accepted", "notes")},
            "rejected": dict(sorted(self.rejected.items())),
        }


@dataclass
class Context:
    """Given to ``run(ctx)`` of every stage.

    Attributes:
        name: the stage's name, such as ``seed``.
        out: the folder to write in; files in it survive an interruption, and the pipeline finishes it.
        inputs: folder of each finished stage by name.
        config: the resolved run config as plain dicts (read only).
        likelihood: ``likelihood(role, prompts, answers)`` gives the log-probability of each answer under a trained generator.
        shard: ``(i, n)``: this process does the i-th of n parts.
        root: the run's root folder.
        backend: ``backend(role)`` gives the writer for ``teacher`` (``batches``: by its Batch API), ``junior``, ``senior``, ``control`` or ``revisor``.
        evaluation_texts: ``evaluation_texts(names, folder)`` gives the texts of evaluation tasks that the folder does not hold.
        checker: posts JSON to the teacher's exact checker and returns its JSON, or None where there is no such checker.
    """

    name: str
    out: Path
    inputs: Mapping[str, Path]
    config: Mapping[str, Any]
    root: Path
    backend: Callable[[str], Backend]
    checker: Callable[[str, Any], Any] | None = None
    shard: tuple[int, int] = (0, 1)
    likelihood: Callable[[str, Sequence[str], Sequence[str]], list[float]] | None = None
    evaluation_texts: Callable[[Sequence[str], Path | None], Iterable[str]] | None = None
    ledger: Ledger = field(default_factory=Ledger)

    def mine(self, items: Iterable[T]) -> Iterator[T]:
        """This shard's share of ``items``: every n-th, so that n shards in any order make up the whole."""
        index, count = self.shard
        return itertools.islice(items, index, None, count)
