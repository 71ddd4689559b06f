"""Contrastive training of an embedder: InfoNCE with hard negatives, over all ranks' documents."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch.utils.checkpoint import checkpoint

from speedlit.data.tokens import TokenContract
from speedlit.errors import UsageError
from speedlit.losses.contrastive import allowed_documents, allowed_queries, gather, info_nce
from speedlit.models.adapter import LoRA, QLoRA
from speedlit.models.backbone import Backbone, hidden_states
from speedlit.models.pooling import embed
from speedlit.modules.base import Batch, Figures, Schedule, SpeedModule


class EmbeddingModule(SpeedModule):
    """A query must be nearer to its positive document than to all others of the global batch.

    Args:
        backbone: the network; a decoder may attend causally or bidirectionally.
        adapter: LoRA, QLoRA, or null: all weights are trained.
        tokens: the token contract, with pooling and instruction format.
        optimizer: makes the optimizer of parameters.
        schedule: the learning rate over the run.
        clip: largest norm of the gradient; null never clips.
        seed: of dropout; null: ``seed_everything``.
        temperature: divides the similarities.
        symmetric: also ask each positive document for its query, half and half.
        mask_equal: texts equal to the positive or to the query are no negatives.
        no_in_batch: task kinds (such as classification) whose queries see only their own hard negatives.
        recompute: keep no activations of a chunk of texts (``data.micro_batch``) but compute it again in the backward
            pass: the memory of one chunk, any loss, the same gradient.
    """

    role = "embedder"
    head = False

    def __init__(
        self,
        backbone: Backbone,
        adapter: LoRA | QLoRA | None = None,
        tokens: TokenContract = TokenContract(),  # noqa: B008 - frozen
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule = Schedule(),  # noqa: B008 - never changed
        clip: float | None = 1.0,
        seed: int | None = None,
        temperature: float = 0.02,
        symmetric: bool = False,
        mask_equal: bool = True,
        no_in_batch: list[str] | None = None,
        recompute: bool = False,
    ) -> None:
        if temperature <= 0:
            raise UsageError(f"EmbeddingModule.temperature is {temperature}; it must be above 0")
        super().__init__(backbone, adapter, tokens, optimizer, schedule, clip, seed)
        self.temperature, self.symmetric, self.mask_equal = temperature, symmetric, mask_equal
        self.no_in_batch, self.recompute = set(no_in_batch or []), recompute

    def embed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Vectors (B, D) of ids and mask (B, T)."""
        return embed(hidden_states(self.model, ids, mask), mask, self.tokens.pooling, self.tokens.normalize)

    def vectors(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries (B, D) and documents (B, slots, D); an empty slot's vector is 0."""
        again = self.recompute and len(batch["chunks"]) > 1 and torch.is_grad_enabled()
        parts = [checkpoint(self.embed, *chunk, use_reentrant=False) if again else self.embed(*chunk) for chunk in batch["chunks"]]
        found = torch.cat(parts)[batch["order"]] * (batch["order"] >= 0)[:, None]
        count, slots = batch["texts"].shape
        return found[:count], found[count:].view(count, slots, -1)

    def loss(self, batch: Batch, step: Batch) -> tuple[torch.Tensor, Figures]:
        """InfoNCE, summed over this rank's queries and divided by the step's."""
        queries, documents = self.vectors(batch)
        count, first = len(queries), self.global_rank * len(queries)
        everywhere, texts, asked = gather(documents), gather(batch["texts"]), gather(batch["asked"])
        slots = documents.shape[1]
        in_batch = batch["kind"] not in self.no_in_batch
        allowed = allowed_documents(texts, asked, batch["query_text"], batch["texts"], batch["asked"], first, in_batch, self.mask_equal)
        own = torch.arange(first, first + count, device=queries.device)
        losses = info_nce(queries, everywhere.flatten(0, 1), own * slots, self.temperature, allowed)
        if self.symmetric and in_batch:
            back = allowed_queries(texts, asked, batch["texts"], batch["asked"], self.mask_equal)
            losses = (losses + info_nce(documents[:, 0], gather(queries), own, self.temperature, back)) / 2
        negatives = allowed.scatter(1, own[:, None] * slots, False).sum() / step["samples"]
        return losses.sum() / step["samples"], {"negatives": negatives}

    def weight(self, step: Batch) -> int:
        """Queries."""
        return int(step["samples"])

    def predict_step(self, step: Batch, index: int) -> list[dict[str, Any]]:
        """Per sample: its id and the vector of its query."""
        out = []
        for batch in step["micro"]:
            queries, _ = self.vectors(batch)
            out += [{"id": name, "vector": vector} for name, vector in zip(batch["names"], queries.tolist(), strict=True)]
        return out
