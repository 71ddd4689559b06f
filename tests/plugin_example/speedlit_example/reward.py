"""A reward model with its data and a callback: all that such a module writes itself is its network's top and its loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import save_file

from speedlit.data.collate import IGNORE
from speedlit.data.datamodules import PreferenceData
from speedlit.models.backbone import hidden_states
from speedlit.modules.base import SpeedModule
from speedlit_example.losses import margin_loss


class RewardModule(SpeedModule):
    """Bradley-Terry: a linear score of the completion's mean hidden state, higher for the chosen one."""

    role, head = "embedder", False  # a network without the head of a language model

    def configure_model(self) -> None:
        """The network, and the score on top of it."""
        super().configure_model()
        if not hasattr(self, "score"):
            self.score = torch.nn.Linear(self.model.config.hidden_size, 1, bias=False)
            torch.nn.init.constant_(self.score.weight, 0.01)

    def loss(self, batch: dict[str, Any], step: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The mean over the step's pairs; the first half of the rows is chosen, the second rejected."""
        hidden = hidden_states(self.model, batch["ids"], None)
        mask = (batch["labels"] != IGNORE).to(hidden.dtype)[..., None]
        chosen, rejected = self.score((hidden * mask).sum(1) / mask.sum(1).clamp(min=1)).view(2, -1)
        return margin_loss(chosen, rejected, 1.0).sum() / step["samples"], {"right": (chosen > rejected).float().sum() / step["samples"]}

    def save_model(self, out: Path) -> Path:
        """The folder of the network, with the score beside it."""
        place = super().save_model(out)
        if self.global_rank == 0:
            save_file({"score": self.score.weight.detach().cpu()}, place / "score.safetensors")
        return place


class ShortPairs(PreferenceData):
    """Preference pairs in rows of their own, at most four in one forward pass."""

    def __init__(self, shards: str, batch_size: int = 8) -> None:
        super().__init__(shards, batch_size, micro_batch=4, share_prefix=False)


class Margins(L.Callback):
    """Writes down the loss of each step."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        """One line a step."""
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "margins.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as stream:
                stream.write(f"{trainer.global_step} {pl_module.figures['loss']!r}\n")
