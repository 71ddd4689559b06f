"""Keeps ``checkpoints/last.ckpt``: written inside the loop, between two optimizer steps, under its name only when complete.

Checkpoints that Lightning writes after the loop has ended resume wrongly (the rest of the epoch is dropped, or a batch is
repeated), so the last step is saved inside the loop as well.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import lightning as L

from speedlit.files import disk_error, fsync_dir, remove

OLD = ".last.old"


class Resume(L.Callback):
    """Saves the run every so often.

    Args:
        every_n_steps: optimizer steps between two checkpoints; null: only by time.
        every_seconds: at the latest after so many seconds; null: only by steps.
        folder: where; default: ``checkpoints`` in the trainer's root folder.
        at_end: also save after the last step.
    """

    def __init__(self, every_n_steps: int | None = None, every_seconds: float | None = 60.0, folder: str | None = None, at_end: bool = True) -> None:
        self.every_n_steps, self.every_seconds, self.folder, self.at_end = every_n_steps, every_seconds, folder, at_end
        self._last = time.monotonic()

    def path(self, trainer: L.Trainer) -> Path:
        """Where the checkpoint lies."""
        return Path(self.folder or Path(trainer.default_root_dir) / "checkpoints") / "last.ckpt"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Time counts from here."""
        self._last = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Save when it is time; all ranks decide alike."""
        step = trainer.global_step
        last = self.at_end and step >= trainer.estimated_stepping_batches
        due = bool(self.every_n_steps) and step % self.every_n_steps == 0  # type: ignore[operator]
        if self.every_seconds is not None and not (last or due):
            late = time.monotonic() - self._last >= self.every_seconds
            due = trainer.strategy.reduce_boolean_decision(late, all=False) if trainer.world_size > 1 else late
        if last or due:
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Write the checkpoint in place of the last one."""
        path = self.path(trainer)
        temporary = path.with_name(f".last.{os.getpid() if trainer.world_size == 1 else 'ranks'}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                put_in_place(temporary, path)
        except OSError as error:
            raise disk_error(error, path) from error
        self._last = time.monotonic()


def put_in_place(new: Path, path: Path) -> None:
    """Give a complete checkpoint its name. A folder can't be replaced in one go: the old one first goes aside, where ``last_whole`` finds it."""
    for part in [new] if new.is_file() else [p for p in new.rglob("*") if p.is_file()]:
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
    old = path.with_name(OLD)
    if path.is_dir() or new.is_dir() and path.exists():
        remove(old)
        path.rename(old)
    new.replace(path)
    fsync_dir(path.parent)
    remove(old)


def last_whole(path: Path) -> Path:
    """The checkpoint of that name, or the old one, where a run was killed between the two names."""
    old = path.with_name(OLD)
    return old if old.exists() and not path.exists() else path
