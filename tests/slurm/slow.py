"""A callback that gives a test the time to disturb a fit."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import lightning as L


class Slow(L.Callback):
    """Waits in each step, the second rank after the first; leaves each rank's process id in the root folder. ``once``: in a job's first attempt alone."""

    def __init__(self, seconds: float = 0.0, once: bool = False) -> None:
        self.seconds = 0.0 if once and int(os.environ.get("SLURM_RESTART_COUNT", "0")) else seconds

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        (Path(trainer.default_root_dir) / f"pid-{trainer.global_rank}").write_text(str(os.getpid()))

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        time.sleep(self.seconds * (1 + trainer.global_rank))
