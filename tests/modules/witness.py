"""Callbacks that write down what a fit does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L


class Names(L.Callback):
    """Writes down which samples each step of this process had."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, step: Any, index: int) -> None:
        """One line: the step, and its samples."""
        names = sorted(name for batch in step["micro"] if not batch.get("idle") for name in batch["names"])
        with Path(f"{self.path}.{trainer.global_rank}").open("a") as stream:
            stream.write(f"{trainer.global_step} {' '.join(names)}\n")


class Exchanges(L.Callback):
    """Counts how often gradients are exchanged in each step of ddp (the tiny model's fit into one bucket), and writes it down."""

    def __init__(self, path: str) -> None:
        self.path, self.count = Path(path), 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Put a counter before ddp's own exchange."""
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        def counted(state, bucket):  # type: ignore[no-untyped-def] # torch reads the annotations
            self.count += 1
            return allreduce_hook(state, bucket)

        trainer.strategy.model.register_comm_hook(None, counted)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """One number."""
        if trainer.is_global_zero:
            with self.path.open("a") as stream:
                stream.write(f"{self.count}\n")
        self.count = 0
