"""Ends a Slurm job in good order: a signal only sets a flag; between two steps all ranks agree, save, and rank 0 requeues the job.

Saving inside the handler would hang: the ranks are interrupted at different places, some of them in the middle of an exchange.
"""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

import lightning as L

from speedlit.callbacks.resume import Resume
from speedlit.errors import Requeued, SpeedlitError

REQUEUE, LEAVE = 2, 1


class Requeue(L.Callback):
    """Saves and requeues on USR1 (``#SBATCH --signal=USR1@120``, preemption); saves and leaves on TERM (scancel, the time is up).

    It stands after Resume, whose checkpoint it writes, so that all that a step leaves behind is in it.
    """

    def __init__(self) -> None:
        self.flag = 0
        self._before: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listen from here on."""
        self._listen(signal.SIGUSR1)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take TERM from Lightning, whose handler exchanges with other ranks."""
        self._listen(signal.SIGTERM)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the signals as they were."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _listen(self, number: int) -> None:
        self._before.setdefault(number, signal.getsignal(number))
        signal.signal(number, self._raise_flag)

    def _raise_flag(self, number: int, frame: Any) -> None:
        self.flag = max(self.flag, REQUEUE if number == signal.SIGUSR1 else LEAVE)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Save and end, if any rank has had a signal; nothing to do where the run is through anyway.

        Raises:
            Requeued: the checkpoint is written.
        """
        wanted = [agreed(trainer, self.flag >= level) for level in (LEAVE, REQUEUE)] if agreed(trainer, self.flag > 0) else []
        if not wanted or trainer.global_step >= trainer.estimated_stepping_batches:
            return
        callbacks: list[L.Callback] = getattr(trainer, "callbacks", [])
        saver = next(callback for callback in callbacks if isinstance(callback, Resume))
        saver.save(trainer)
        trainer.strategy.barrier("requeue")
        if wanted[-1] and trainer.is_global_zero:
            requeue()
        raise Requeued(f"a signal of Slurm: saved after step {trainer.global_step}" + (", and the job requeued" if wanted[-1] else ""))


def agreed(trainer: L.Trainer, mine: bool) -> bool:
    """Whether any rank says so."""
    return bool(trainer.strategy.reduce_boolean_decision(mine, all=False)) if trainer.world_size > 1 else mine


def requeue() -> None:
    """Put this job, or this task of an array, back into the queue.

    Raises:
        SpeedlitError: Slurm refused.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode:
        raise SpeedlitError(f"scontrol requeue {job} failed ({done.stderr.strip()}); the checkpoint is written: submit the same job again")
