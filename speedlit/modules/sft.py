"""Supervised fine-tuning on completions: the junior generator, the revisor."""

from __future__ import annotations

from typing import Any

import torch

from speedlit.losses.logprobs import row_sums, token_logps
from speedlit.models.backbone import hidden_states
from speedlit.modules.base import Batch, Figures, SpeedModule, check_head, output_head


class SFTModule(SpeedModule):
    """Cross entropy of the completion's tokens, the mean over all of the optimizer step."""

    def on_fit_start(self) -> None:
        """Probes of the base, and of the head."""
        super().on_fit_start()
        check_head(self.model)

    def logps(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-prob of each target token (N,) and its row (N,). Rows are padded on the right, so causal attention needs no mask."""
        return token_logps(hidden_states(self.model, batch["ids"], None), *_head(self.model, batch["labels"]))

    def loss(self, batch: Batch, step: Batch) -> tuple[torch.Tensor, Figures]:
        """Negative log-likelihood, summed here and divided by the step's target tokens."""
        logps, _ = self.logps(batch)
        return -logps.sum() / step["targets"], {}

    def weight(self, step: Batch) -> int:
        """Target tokens."""
        return int(step["targets"])

    def predict_step(self, step: Batch, index: int) -> list[dict[str, Any]]:
        """Per sample: its id and the log-prob of its completion."""
        out = []
        for batch in step["micro"]:
            logps, rows = self.logps(batch)
            out += [{"id": name, "logp": value} for name, value in zip(batch["names"], row_sums(logps, rows, len(batch["ids"])).tolist(), strict=True)]
        return out


def _head(model: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    weight, bias = output_head(model)
    return weight, labels, bias
