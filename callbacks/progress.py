"""Shows how far a fit is: on a live view of a terminal, in a plain line every ten seconds elsewhere."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch

from speedlit.models.flops import gemm_rate, step_flops
from speedlit.progress import Progress
from speedlit.strategies import data_ranks, split_over


class FitProgress(L.Callback):
    """Shows steps, loss, tokens per second and MFU while a fit runs.

    Tokens are those of all ranks, without padding. MFU is the rate of the steps' FLOPs beside that of a large bfloat16 product on this device.

    Args:
        label: what is being trained.
    """

    def __init__(self, label: str = "fit") -> None:
        self.label = label
        self._progress: Progress | None = None
        self._tokens = self._predicted = 0.0
        self._begin: float | None = None
        self._now = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar, where the run stands."""
        self._tokens = self._predicted = 0.0
        self._begin = None
        if trainer.is_global_zero:
            self._progress = Progress(self.label, int(trainer.estimated_stepping_batches), "steps", start=trainer.global_step)
            self._progress.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, index: int) -> None:
        """One step more; the first one warms up and isn't timed."""
        if self._progress is None:
            return
        self._now = time.perf_counter()
        if self._begin is None:
            self._begin = self._now
        elif isinstance(batch, dict):
            self._tokens += batch.get("tokens", 0)
            self._predicted += batch.get("targets", 0) / data_ranks(trainer)[1]
        self._progress.advance(1, lambda: self.note(pl_module, data_ranks(trainer)[1], split_over(trainer.strategy)))

    def note(self, module: Any, ranks: int, together: int = 1) -> str:
        """Loss, tokens per second, MFU: those that are known, where ``ranks`` groups of ``together`` processes have different samples."""
        figures = getattr(module, "figures", {})
        words = [f"loss {figures['loss']:.4f}"] if "loss" in figures else []
        seconds = self._now - (self._begin or self._now)
        if seconds and self._tokens:
            rate = step_flops(getattr(module, "model", module), self._tokens, self._predicted) / seconds / together
            words += [f"{ranks * self._tokens / seconds:,.0f} tokens/s", f"MFU {rate / gemm_rate(str(module.device), torch.bfloat16):.0%}"]
        return ", ".join(words)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message stands on a line of its own."""
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.__exit__()
            self._progress = None
