"""A callback that kills its own process, as a power cut would."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import lightning as L


class Spoiler(L.Callback):
    """Puts a NaN into one gradient of a step; the loss is fine."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """In the step after ``step`` others."""
        if trainer.global_step == self.step:
            next(weight for weight in module.parameters() if weight.grad is not None).grad.view(-1)[0] = float("nan")  # type: ignore[union-attr]


class Killer(L.Callback):
    """kill -9 after so many optimizer steps, or after so many backward passes of this process (in the middle of accumulation).

    Before that it writes down which samples each step has seen.
    """

    def __init__(self, after_step: int | None = None, after_backward: int | None = None, before_save: bool = False) -> None:
        self.after_step, self.after_backward, self.before_save = after_step, after_backward, before_save
        self.count = 0

    def _kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def on_after_backward(self, *_: Any) -> None:
        """In the middle of a step."""
        self.count += 1
        if self.count == self.after_backward:
            self._kill()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Between two steps, before anything is saved."""
        if trainer.global_step == self.after_step and self.before_save:
            self._kill()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int) -> None:
        """Between two steps, after what was to be saved."""
        if trainer.global_step == self.after_step and not self.before_save:
            self._kill()
        with (Path(trainer.default_root_dir) / "samples.jsonl").open("a") as stream:
            stream.write(json.dumps([trainer.global_step, [micro["names"] for micro in batch["micro"]]]) + "\n")
