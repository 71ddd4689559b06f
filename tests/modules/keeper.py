"""A callback that keeps the gradients of the first optimizer step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch


class Keeper(L.Callback):
    """Rank 0 writes ``gradients.pt``: the gradients, the number of micro-batches, and whether rows held several sequences."""

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int) -> None:
        """How the step was cut."""
        self.micro, self.several = len(batch["micro"]), "owners" in batch["micro"][0]

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        """After all backward passes and the exchange between ranks."""
        if trainer.is_global_zero:
            found = {name: weight.grad.clone() for name, weight in module.named_parameters() if weight.grad is not None}
            torch.save({"micro": self.micro, "several": self.several, "gradients": found}, Path(trainer.default_root_dir) / "gradients.pt")
