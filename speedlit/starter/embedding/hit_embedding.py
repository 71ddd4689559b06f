"""An embedder that also logs how often the right document comes first: a figure more in metrics.csv and on the screen."""

from __future__ import annotations

from typing import Any

import torch

from speedlit.modules.embedding import EmbeddingModule


class HitEmbedding(EmbeddingModule):
    """``hits`` is the share of queries that find their own document before all others of the batch."""

    def terms(
        self, scores: dict[str, torch.Tensor], allowed: dict[str, torch.Tensor], matched: dict[str, torch.Tensor], grades: torch.Tensor
    ) -> torch.Tensor:
        """The loss of each query from its similarities; looked at here on their way."""
        candidates = scores["query_to_doc"].detach().masked_fill(~allowed["query_to_doc"], float("-inf"))
        self.first = candidates.argmax(1) == matched["query_to_doc"]
        return super().terms(scores, allowed, matched, grades)

    def loss(self, batch: dict[str, Any], step: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One micro-batch's share of the step's loss, and of each figure: what is added here sums up to the step's."""
        total, figures = super().loss(batch, step)
        asked = batch["asked"] != 0  # the others only fill the batch up
        return total, {**figures, "hits": (self.first & asked).sum() / step["samples"]}
