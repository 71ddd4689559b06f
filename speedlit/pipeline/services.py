"""What stages call upon and a run must start and stop: the teacher's endpoint, generators, the exact checker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speedlit.context import Backend
from speedlit.errors import SpeedlitError, UsageError
from speedlit.pipeline.config import RunConfig
from speedlit.synthesis.budget import Budget
from speedlit.synthesis.journal import journal_file
from speedlit.synthesis.wire import address

if TYPE_CHECKING:
    from speedlit.synthesis.batch import BatchBackend
    from speedlit.synthesis.client import HTTPBackend
    from speedlit.synthesis.plugged import Plugged

FOLDERS = {"junior": "04-junior/model", "senior": "07-senior/model", "control": "07-senior/control/model", "revisor": "09-revisor/model"}


class Services:
    """Opens each service when it is first asked for and closes all of them at the end, also after a failure."""

    def __init__(self, config: RunConfig, root: Path, shard: tuple[int, int] = (0, 1)) -> None:
        self.config, self.root = config, root
        self.journal = journal_file(root, shard)
        self._process: subprocess.Popen[str] | None = None
        self._url: str | None = None
        self._open: list[Backend] = []
        self._budget: Budget | None = None
        self._checks: bool | None = None

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        if self._budget is not None:
            self._budget.close()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def release(self) -> None:
        """Close the backends that a stage opened."""
        while self._open:
            self._open.pop().close()

    def backend(self, role: str) -> Backend:
        """The writer behind a role; closed when the stage ends.

        Raises:
            UsageError: unknown role, or its stage has no finished model.
        """
        backend = self._teacher(role) if role in ("teacher", "batches") else self._generator(role)
        self._open.append(backend)
        return backend

    def _teacher(self, role: str) -> Backend:
        backend = self._live() if role == "teacher" else self._batches()
        if not self.config.teacher.structured:
            return backend
        from speedlit.synthesis.structured import Structured

        prober = backend if role == "teacher" else self._live()  # one question of a moment, not of a day
        return Structured(backend, prober, backend.name)

    def _live(self) -> HTTPBackend:
        from speedlit.synthesis.client import HTTPBackend

        teacher = self.config.teacher
        return HTTPBackend(
            **self._asked(),
            base_url=None if teacher.backend else self.url(),
            wire=self._plugged(teacher.backend) if teacher.backend else None,
            concurrency=teacher.concurrency,
            patience=teacher.patience,
            requests_per_minute=teacher.requests_per_minute,
            tokens_per_minute=teacher.tokens_per_minute,
        )

    def _batches(self) -> BatchBackend:
        from speedlit.synthesis.batch import BatchBackend

        teacher = self.config.teacher
        patience = max(teacher.patience, 600.0)  # who waits for a day can wait for ten minutes
        return BatchBackend(**self._asked(), base_url=self.url(), poll=teacher.batch_poll, requests=teacher.batch_requests, patience=patience)

    def _asked(self) -> dict[str, Any]:
        """What both ways of asking the teacher are told."""
        teacher = self.config.teacher
        return {"model": teacher.model, "journal": self.journal, "timeout": teacher.timeout, "retries": teacher.retries, "budget": self.budget()}

    def _plugged(self, name: str) -> Plugged:
        """A teacher that is a class."""
        from speedlit.synthesis.plugged import open_teacher

        teacher = self.config.teacher
        return open_teacher(name, teacher.settings, teacher.timeout, teacher.concurrency)

    def budget(self) -> Budget:
        """The caps of the run over all of its processes; one object for all stages."""
        if self._budget is None:
            caps, patience = asdict(self.config.budget), 1.5 * self.config.teacher.timeout
            self._budget = Budget(self.root, caps, self.config.prices, self.journal, patience)
        return self._budget

    def _generator(self, role: str) -> Backend:
        if role not in FOLDERS:
            raise UsageError(f"no generator is called {role!r}; there are {', '.join(FOLDERS)}")
        sampling, teacher = self.config.sampling, self.config.teacher
        if sampling.base_url:
            from speedlit.synthesis.client import HTTPBackend

            # No journal: it knows a generator by its role alone, and would give the answers of one that was trained again since.
            # What is answered is kept in the stage's part files, as with a generator in this process.
            return HTTPBackend(role, sampling.base_url, None, role, teacher.concurrency, teacher.timeout, teacher.retries, patience=teacher.patience)
        from speedlit.generation.local import LocalBackend

        return LocalBackend(
            self.root / "stages" / FOLDERS[role],
            batch_size=sampling.batch_size,
            processes=sampling.processes,
            dtype=sampling.dtype,
        )

    def likelihood(self, role: str, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """Log-probability of each answer under a trained generator."""
        from speedlit.generation.scoring import sequence_logps

        return sequence_logps(self.root / "stages" / FOLDERS[role], prompts, answers, self.config.sampling.batch_size, self.config.sampling.dtype)

    def evaluation_texts(self, names: Sequence[str], data: Path | None) -> Iterable[str]:
        """The texts of evaluation tasks by name, but for those whose files are in ``data``."""
        from speedlit.evaluation.texts import evaluation_texts

        return evaluation_texts(names, data)

    def url(self) -> str | None:
        """The teacher's base URL: the config's, else ``OPENAI_BASE_URL``, else the embedded teacher's, else the library's own."""
        if self.config.teacher.base_url:
            return self.config.teacher.base_url
        if os.environ.get("OPENAI_BASE_URL"):
            address(os.environ["OPENAI_BASE_URL"])  # the config's was looked at with the config
            return os.environ["OPENAI_BASE_URL"]
        if self.config.teacher.embedded is None:
            return None
        if self._url is None:
            self._url = self._start()
        return self._url

    def _start(self) -> str:
        noise = self.config.teacher.embedded
        if noise is None:
            raise SpeedlitError("no embedded teacher is configured")
        flags = [f"--{k.replace('_', '-')}={getattr(noise, k)}" for k in ("writer_noise", "judge_noise", "critic_noise", "world_seed")]
        command = [sys.executable, "-m", "speedlit", "teacher", "serve", "--port=0", "--stop-with-stdin", *flags]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line = self._process.stdout.readline() if self._process.stdout else ""
        if "http://" not in line:
            raise SpeedlitError("the embedded teacher did not start; try `speedlit teacher serve` to see why")
        return "http://" + line.split("http://", 1)[1].split()[0].rstrip(".,;")

    def checker(self) -> Callable[[str, Any], Any] | None:
        """Posts to the embedded teacher's ``/world`` endpoints; None where the teacher has none."""
        if self._checks is None:
            self._checks = self._probe()
        return self._ask if self._checks else None

    def _probe(self) -> bool:
        if self.config.teacher.embedded is None or self.config.teacher.backend:
            return False
        if self.config.teacher.base_url is None and not os.environ.get("OPENAI_BASE_URL"):
            return True
        self.url()  # an address that is none is a mistake, not another teacher
        try:
            answer = self._ask("topics", None, timeout=30)
        except SpeedlitError:
            return False  # another teacher: the loop runs without the exact checker, and the tables say so
        return isinstance(answer, dict) and isinstance(answer.get("topics"), list)

    def _ask(self, name: str, payload: Any, timeout: float = 300) -> Any:
        place = f"{(self.url() or '').rstrip('/').removesuffix('/v1')}/world/{name}"
        data = None if payload is None else json.dumps(payload).encode()
        request = urllib.request.Request(place, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return json.load(answer)
        except (urllib.error.URLError, HTTPException, OSError, ValueError) as error:
            raise SpeedlitError(f"the teacher at {place} did not answer: {error}") from error
