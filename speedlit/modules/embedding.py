"""Contrastive training of an embedder: InfoNCE with hard negatives, over all ranks' documents."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch.utils.checkpoint import checkpoint

from speedlit.data.tokens import TokenContract
from speedlit.errors import UsageError
from speedlit.losses import contrastive
from speedlit.losses.contrastive import DIRECTIONS, Named, gather
from speedlit.models.adapter import LoRA, QLoRA
from speedlit.models.backbone import Backbone, hidden_states
from speedlit.models.memory import free_bytes, saved_bytes
from speedlit.models.pooling import embed, picked
from speedlit.models.sharding import most
from speedlit.models.threads import passes
from speedlit.modules.base import Batch, Figures, Schedule, SpeedModule

COLDEST = 0.01  # a learned temperature doesn't fall below


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
        learn_temperature: train it as well, without weight decay, beginning there; it doesn't fall below 0.01.
        directions: whose similarities are compared: query_to_doc (always), doc_to_query, query_to_query, doc_to_doc; null: query_to_doc.
        partition: joint (one softmax over all directions) or per_direction (one for each, and their mean: the symmetric loss).
        mask_equal: texts equal to the positive or to the query are no negatives.
        margin: candidates nearer than the positive by more than this are taken for false negatives and left out; null: none.
        no_in_batch: task kinds (such as classification) whose queries see only their own hard negatives.
        contrast: weight of InfoNCE.
        graded: also follow the ``scores`` of the shards, where a sample has some: kl (its documents' ranking) or margin_mse (their distances).
        graded_weight: weight of that term.
        graded_temperature: divides the scores (kl).
        matryoshka: sizes at which the first dimensions alone must do, such as [768, 256, 64]; losses of all are added; null: the whole vectors.
        matryoshka_weights: of these sizes; null: 1 each.
        recompute: keep no activations of a chunk of texts (``data.micro_batch``) but compute it again in the backward pass: the
            memory of one chunk, any loss, the same gradient. auto: of those chunks only that don't fit into half of the free memory.
    """

    role = "embedder"
    head = False
    independent = True

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
        learn_temperature: bool = False,
        directions: list[str] | None = None,
        partition: str = "joint",
        mask_equal: bool = True,
        margin: float | None = None,
        no_in_batch: list[str] | None = None,
        contrast: float = 1.0,
        graded: str | None = None,
        graded_weight: float = 1.0,
        graded_temperature: float = 1.0,
        matryoshka: list[int] | None = None,
        matryoshka_weights: list[float] | None = None,
        recompute: bool | str = "auto",
    ) -> None:
        directions = directions or ["query_to_doc"]
        _refuse(temperature, directions, partition, contrast, graded, graded_weight, graded_temperature, matryoshka, matryoshka_weights, recompute)
        super().__init__(backbone, adapter, tokens, optimizer, schedule, clip, seed)
        self.start, self.directions, self.joint = temperature, directions, partition == "joint"
        self.mask_equal, self.margin, self.no_in_batch = mask_equal, margin, set(no_in_batch or [])
        self.contrast, self.graded, self.graded_weight, self.graded_temperature = contrast, graded, graded_weight if graded else 0.0, graded_temperature
        self.sizes = dict(zip(matryoshka, matryoshka_weights or [1.0] * len(matryoshka), strict=True)) if matryoshka else {}
        self.recompute, self.token_bytes = recompute, 0.0
        self.log_scale = torch.nn.Parameter(torch.tensor(-math.log(temperature))) if learn_temperature else None

    @property
    def temperature(self) -> torch.Tensor | float:
        """What divides the similarities."""
        return self.start if self.log_scale is None else torch.exp(-self.log_scale).clamp(min=min(COLDEST, self.start))

    def configure_model(self) -> None:
        """Build the network; compare its width with the sizes asked for.

        Raises:
            UsageError: a size is larger.
        """
        super().configure_model()
        width = self.model.config.hidden_size
        if too_large := [size for size in self.sizes if size > width]:
            raise UsageError(f"EmbeddingModule.matryoshka has {too_large[0]}, and the model's vectors have {width} dimensions; leave out what is larger")

    def embed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Vectors (B, D) of ids and mask (B, T)."""
        hidden = hidden_states(self.model, ids, mask, wanted=picked(mask, self.tokens.pooling))
        return embed(hidden, mask, self.tokens.pooling, self.tokens.normalize)

    def vectors(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries (B, D) and documents (B, slots, D); an empty slot's vector is 0."""
        chunks = list(batch["chunks"])
        if self.spread:  # all ranks gather weights equally often; nothing reads the last one's repetitions
            chunks += [chunks[-1]] * (most(len(chunks), self.device) - len(chunks))
        again = self.computed_again(chunks)
        if torch.is_grad_enabled() and self.apart():
            weights = [weight for weight in self.model.parameters() if weight.requires_grad]
            parts = passes(self.embed, chunks, again, weights)
        else:
            parts = [checkpoint(self.embed, *chunk, use_reentrant=False) if i < again else self.embed(*chunk) for i, chunk in enumerate(chunks)]
        found = torch.cat(parts)[batch["order"]] * (batch["order"] >= 0)[:, None]
        count, slots = batch["texts"].shape
        return found[:count], found[count:].view(count, slots, -1)

    def computed_again(self, chunks: list[tuple[torch.Tensor, torch.Tensor]]) -> int:
        """How many chunks, from the first, keep no activations. The last, with which the backward pass begins, always keeps its own."""
        if not self.recompute or len(chunks) == 1 or not torch.is_grad_enabled():
            return 0
        if self.recompute != "auto" or self.spread:  # free memory differs between ranks, which must do the same
            return len(chunks) - 1
        if not self.token_bytes:
            weights = {weight.untyped_storage().data_ptr() for weight in self.model.parameters()}
            self.token_bytes = saved_bytes(lambda: self.embed(*chunks[0]), weights) / chunks[0][0].numel()  # the longest texts keep most
        room, kept = free_bytes(chunks[0][0].device) / 2, 0.0
        for number in range(len(chunks) - 1, -1, -1):
            kept += chunks[number][0].numel() * self.token_bytes
            if kept > room and number < len(chunks) - 1:
                return number + 1
        return 0

    def loss(self, batch: Batch, step: Batch) -> tuple[torch.Tensor, Figures]:
        """The contrastive and the graded term, summed over this rank's queries and divided by the step's."""
        queries, documents = self.vectors(batch)
        in_batch = batch["kind"] not in self.no_in_batch
        directions = self.directions if in_batch else ["query_to_doc"]
        group = self.data_group
        everywhere = (gather(queries, group) if len(directions) > 1 else queries, gather(documents, group))
        first = contrastive.first_row(len(queries), group)
        known = gather(batch["texts"], group), gather(batch["asked"], group), batch["query_text"], batch["texts"], batch["asked"]
        allowed, matched = contrastive.candidates(directions, *known, first, in_batch, self.mask_equal)
        real = batch["asked"] != 0
        total: Any = 0.0
        for size, weight in (self.sizes or {queries.shape[1]: 1.0}).items():
            cut = [contrastive.shrink(vectors, size, self.tokens.normalize) for vectors in (queries, documents, *everywhere)]
            scores = contrastive.similarities(cut[0], cut[1], (cut[2], cut[3]), directions)
            total = total + weight * self.terms(scores, allowed, matched, batch["scores"])
        negatives = (allowed["query_to_doc"].sum(1) - 1)[real].sum()
        figures = {"negatives": negatives / step["samples"]}
        if self.log_scale is not None:
            figures["temperature"] = self.temperature.detach() * real.sum() / step["samples"]  # type: ignore[union-attr]
        return (total * real).sum() / step["samples"], figures

    def terms(self, scores: Named, allowed: Named, matched: Named, grades: torch.Tensor) -> torch.Tensor:
        """The weighted sum of the terms, one value per query."""
        total: Any = 0.0
        if self.contrast:
            counted = allowed if self.margin is None else contrastive.without_false_negatives(scores, allowed, matched, self.margin)
            total = self.contrast * contrastive.info_nce(scores, counted, matched, self.temperature, self.joint)
        if self.graded:
            columns = matched["query_to_doc"][:, None] + torch.arange(grades.shape[1], device=grades.device)
            own = scores["query_to_doc"].gather(1, columns)
            kl = self.graded == "kl"
            found = contrastive.graded_kl(own, grades, self.temperature, self.graded_temperature) if kl else contrastive.margin_mse(own, grades)
            total = total + self.graded_weight * found
        summed: torch.Tensor = total
        return summed

    def weight(self, step: Batch) -> int:
        """Queries."""
        return int(step["samples"])

    def predict_step(self, step: Batch, index: int) -> list[dict[str, Any]]:
        """Per sample: its id and the vector of its query."""
        out = []
        for batch in step["micro"]:
            queries, _ = self.vectors(batch)
            out += [{"id": name, "vector": vector} for name, vector in zip(batch["names"], queries.tolist(), strict=False)]
        return out


def _refuse(
    temperature: float, directions: list[str], partition: str, contrast: float, graded: str | None, graded_weight: float, graded_temperature: float,
    matryoshka: list[int] | None, weights: list[float] | None, recompute: bool | str,
) -> None:  # fmt: skip
    """Settings that can't be meant.

    Raises:
        UsageError: names the key and what to set.
    """
    wrong = [name for name in directions if name not in DIRECTIONS]
    alike = {"query_to_query", "doc_to_doc"} & set(directions)
    for bad, text in (
        (temperature <= 0, f"temperature is {temperature}; it must be above 0"),
        (wrong, f"directions has {wrong}; choose among {', '.join(DIRECTIONS)}"),
        ("query_to_doc" not in directions or len(set(directions)) < len(directions), f"directions is {directions}; name query_to_doc, and each only once"),
        (partition not in ("joint", "per_direction"), f"partition is {partition!r}; choose joint or per_direction"),
        (partition == "per_direction" and alike, f"partition is per_direction, but {', '.join(sorted(alike))} hold no positive of their own; set it to joint"),
        (graded not in (None, "kl", "margin_mse"), f"graded is {graded!r}; choose kl, margin_mse or null"),
        (min(contrast, graded_weight) < 0, f"contrast is {contrast} and graded_weight {graded_weight}; neither may be negative"),
        (contrast == 0 and not (graded and graded_weight), "contrast is 0 and there is no graded term, so nothing is trained; set one of them"),
        (graded_temperature <= 0, f"graded_temperature is {graded_temperature}; it must be above 0"),
        (any(size < 1 for size in matryoshka or []), f"matryoshka is {matryoshka}; sizes must be at least 1"),
        (weights is not None and len(weights) != len(matryoshka or []), f"matryoshka_weights is {weights}; give one for each size of matryoshka"),
        (recompute not in (True, False, "auto"), f"recompute is {recompute!r}; choose true, false or auto"),
    ):  # fmt: skip
        if bad:
            raise UsageError(f"EmbeddingModule.{text}")
