"""Writes ``metrics.csv``: one line per logged optimizer step, every figure with all its digits.

A resumed run first drops the lines after its checkpoint, so that the file reads like that of an uninterrupted run.
"""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path
from typing import Any

import lightning as L

from speedlit.files import atomic


class Metrics(L.Callback):
    """Step, loss, learning rate, gradient norm and the module's own figures; validation and mteb scores when there are some.

    Args:
        every_n_steps: optimizer steps between two lines.
        path: the file; default: ``metrics.csv`` in the trainer's root folder.
    """

    def __init__(self, every_n_steps: int = 1, path: str | None = None) -> None:
        self.every_n_steps, self.given = every_n_steps, path
        self.rows: list[dict[str, Any]] = []
        self._stream: Any = None
        self._writer: Any = None
        self._scores: dict[str, float] = {}
        self._before, self._start = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of training, over all attempts of an interrupted run."""
        return self._before + time.monotonic() - self._start

    def state_dict(self) -> dict[str, Any]:
        """The seconds so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the seconds of the interrupted run."""
        self._before = state_dict["seconds"]

    def path(self, trainer: L.Trainer) -> Path:
        """The file."""
        return Path(self.given or Path(trainer.default_root_dir) / "metrics.csv")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep what an interrupted run has written up to its checkpoint."""
        self._start = time.monotonic()
        path = self.path(trainer)
        if trainer.global_step and path.is_file():
            with path.open(newline="", encoding="utf-8") as stream:
                self.rows = [{k: v for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(stream)]
            self.rows = [row for row in self.rows if str(row.get("step", "")).isdigit() and int(row["step"]) <= trainer.global_step]
        if trainer.is_global_zero and self.rows:
            self._rewrite(trainer)
        if not trainer.global_step and (scores := self._new_scores(trainer)):
            self.line(trainer, scores)  # of the untrained model

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """A line, where one is due."""
        if trainer.global_step % self.every_n_steps == 0:
            self.line(trainer, getattr(pl_module, "figures", {}))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Scores of the finished model, and the file closed."""
        if scores := self._new_scores(trainer):
            self.line(trainer, scores)
        if self._stream is not None:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._stream = None

    def line(self, trainer: L.Trainer, figures: dict[str, float]) -> None:
        """Append one line; a new column rewrites the file."""
        if not trainer.is_global_zero:
            return
        row = {"step": trainer.global_step, "epoch": trainer.current_epoch, **figures, **self._new_scores(trainer)}
        known = self.rows[0].keys() if self.rows else []
        self.rows.append(row)
        if self._stream is None or not set(row) <= set(known):
            self._rewrite(trainer)
        else:
            self._writer.writerow(row)
            self._stream.flush()
        for logger in trainer.loggers:  # those a recipe asks for
            logger.log_metrics({name: value for name, value in figures.items() if not name.startswith("mteb/")}, step=trainer.global_step)

    def _new_scores(self, trainer: L.Trainer) -> dict[str, float]:
        """Scores that changed since the last line."""
        now = {name: float(value) for name, value in trainer.callback_metrics.items()}
        new = {name: value for name, value in now.items() if self._scores.get(name) != value}
        self._scores = now
        return new

    def _rewrite(self, trainer: L.Trainer) -> None:
        path = self.path(trainer)
        if self._stream is not None:
            self._stream.close()
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        self.rows[0] = {**dict.fromkeys(columns, ""), **self.rows[0]}
        with atomic(path) as stream:
            writer = csv.DictWriter(stream, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        self._stream = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._stream, columns, restval="")
