"""Shows how far a fit is: a live bar on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

from typing import Any

import lightning as L

from speedlit.progress import Progress


class FitProgress(L.Callback):
    """Optimizer steps and the loss.

    Args:
        label: what is being trained.
    """

    def __init__(self, label: str = "fit") -> None:
        self.label = label
        self._progress: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar, where the run stands."""
        if trainer.is_global_zero:
            self._progress = Progress(self.label, int(trainer.estimated_stepping_batches), "steps")
            self._progress.__enter__()
            self._progress.advance(trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """One step more."""
        if self._progress is not None:
            figures = getattr(pl_module, "figures", {})
            self._progress.advance(1, f"loss {figures['loss']:.4f}" if "loss" in figures else None)

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
