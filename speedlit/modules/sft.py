"""Supervised fine-tuning on completions: the junior generator, the revisor."""

from __future__ import annotations

from typing import Any

import torch

from speedlit.losses.logprobs import row_sums
from speedlit.modules.base import Batch, Figures, SpeedModule, check_head, target_logps


class SFTModule(SpeedModule):
    """Cross entropy of the completion's tokens, the mean over all of the optimizer step."""

    independent = True

    def on_fit_start(self) -> None:
        """Probes of the base, and of the head."""
        super().on_fit_start()
        check_head(self.model)

    def loss(self, batch: Batch, step: Batch) -> tuple[torch.Tensor, Figures]:
        """Negative log-likelihood, summed here and divided by the step's target tokens."""
        logps, _ = target_logps(self.model, batch)
        return -logps.sum() / step["targets"], {}

    def weight(self, step: Batch) -> int:
        """Target tokens."""
        return int(step["targets"])

    def predict_step(self, step: Batch, index: int) -> list[dict[str, Any]]:
        """Per sample: its id and the log-prob of its completion."""
        out = []
        for batch in self.even(step["micro"]):
            logps, owners = target_logps(self.model, batch)
            if batch.get("idle"):
                continue
            sums = row_sums(logps, owners, len(batch["names"])).tolist()
            out += [{"id": name, "logp": value} for name, value in zip(batch["names"], sums, strict=True)]
        return out
