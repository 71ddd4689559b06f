"""Preference optimisation: the senior generator. The policy starts at its reference, so step 0 has margin 0."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable

from speedlit.data.tokens import IGNORE, TokenContract
from speedlit.errors import SpeedlitError, UsageError
from speedlit.losses.logprobs import row_sums, token_logps
from speedlit.losses.preference import AVERAGED, LOSSES
from speedlit.models.adapter import LoRA, QLoRA
from speedlit.models.backbone import Backbone, hidden_states
from speedlit.modules.base import Batch, Figures, Schedule, SpeedModule, check_head, output_head


class DPOModule(SpeedModule):
    """DPO and its relatives over one pair of log-ratios.

    The reference is the model that training starts from: the base with every finished stage in ``backbone.adapters`` merged
    (for the senior: the junior itself). With LoRA it is the policy with its adapter switched off and costs no memory.

    Args:
        backbone: the network; name the junior in ``adapters``.
        adapter: LoRA, QLoRA, or null: all weights are trained and the reference is a frozen copy.
        tokens: the token contract.
        optimizer: makes the optimizer of parameters.
        schedule: the learning rate over the run.
        clip: largest norm of the gradient; null never clips.
        seed: of dropout; null: ``seed_everything``.
        loss: sigmoid, robust, hinge or ipo.
        beta: strength of the pull to the reference; 0 switches the preference term off (then nll_weight must be above 0).
        nll_weight: weight of the chosen completions' negative log-likelihood per token.
        label_smoothing: assumed share of flipped pairs (sigmoid, robust).
        reference: adapter_off; copy (a frozen one); precomputed (one pass over the data before training: no copy is kept, and
            from the second epoch on it saves time); null: adapter_off with an adapter, else copy.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapter: LoRA | QLoRA | None = None,
        tokens: TokenContract = TokenContract(),  # noqa: B008 - frozen
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule = Schedule(),  # noqa: B008 - never changed
        clip: float | None = 1.0,
        seed: int | None = None,
        loss: str = "sigmoid",
        beta: float = 0.1,
        nll_weight: float = 0.0,
        label_smoothing: float = 0.0,
        reference: str | None = None,
    ) -> None:
        if loss not in LOSSES:
            raise UsageError(f"DPOModule.loss is {loss!r}; choose among {', '.join(LOSSES)}")
        if beta < 0 or nll_weight < 0 or (beta == 0 and nll_weight == 0):
            raise UsageError(f"DPOModule has beta {beta} and nll_weight {nll_weight}: neither may be negative, and one must be above 0")
        if not 0 <= label_smoothing < 0.5:
            raise UsageError(f"DPOModule.label_smoothing is {label_smoothing}; it lies in [0, 0.5)")
        reference = reference or ("adapter_off" if adapter else "copy")
        if reference not in ("adapter_off", "copy", "precomputed"):
            raise UsageError(f"DPOModule.reference is {reference!r}; choose adapter_off, copy or precomputed")
        self.whole = adapter is None or adapter.train_embeddings  # switching the adapter off does not give the start model
        if reference == "adapter_off" and self.whole:
            raise UsageError("DPOModule.reference is adapter_off, but weights outside the adapter are trained, so the reference would move; set it to copy")
        super().__init__(backbone, adapter, tokens, optimizer, schedule, clip, seed)
        self.name, self.beta, self.nll_weight, self.label_smoothing, self.reference = loss, beta, nll_weight, label_smoothing, reference
        self.frozen: Any = None
        self.precomputed: torch.Tensor | None = None

    def configure_model(self) -> None:
        """Build the policy, and the frozen copy where one is needed."""
        built = self.model is not None
        super().configure_model()
        if not built and self.beta and (self.reference == "copy" or self.reference == "precomputed" and self.whole):
            self.frozen = copy.deepcopy(self.model).requires_grad_(False).eval()

    def on_fit_start(self) -> None:
        """Probes of the base, and of the head."""
        super().on_fit_start()
        check_head(self.model)
        if self.beta and self.reference == "precomputed":
            self.precompute()

    def precompute(self) -> None:
        """The reference's log-prob of every chosen and rejected completion: (samples, 2). A resumed run makes them again, alike."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        count, batches = data.sweep()
        table = torch.zeros(count, 2, device=self.device)
        for batch in batches:
            batch = self.transfer_batch_to_device(batch, self.device, 0)
            with self.trainer.precision_plugin.forward_context():
                table[batch["places"]] = self.reference_sums(batch)
        self.precomputed = self.trainer.strategy.reduce(table, reduce_op="sum")
        self.frozen = None

    def logps(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-prob of each target token (N,) and its row (N,) among chosen, then rejected completions."""
        weight, bias = output_head(model)
        return token_logps(hidden_states(model, batch["ids"], None), weight, batch["labels"], bias)

    def reference_logps(self, batch: Batch) -> torch.Tensor:
        """What the start model gives to the same tokens (N,)."""
        with torch.no_grad():
            if self.frozen is not None:
                return self.logps(self.frozen, batch)[0]
            self.model.eval()  # no dropout in the reference
            try:
                with self.model.disable_adapter():
                    return self.logps(self.model, batch)[0]
            finally:
                self.model.train(self.training)

    def reference_sums(self, batch: Batch) -> torch.Tensor:
        """What the start model gives to each chosen and rejected completion (pairs, 2)."""
        if self.precomputed is not None and self.training:
            return self.precomputed[batch["places"]]
        rows = (batch["labels"][:, 1:] != IGNORE).nonzero(as_tuple=True)[0]
        return row_sums(self.reference_logps(batch), rows, len(batch["ids"])).view(2, -1).T

    def loss(self, batch: Batch, step: Batch) -> tuple[torch.Tensor, Figures]:
        """Preference term per pair of the step, plus the NLL term per chosen token of the step."""
        count = len(batch["ids"])
        pairs = count // 2
        needed = batch if self.beta else {**batch, "ids": batch["ids"][:pairs], "labels": batch["labels"][:pairs]}
        logps, rows = self.logps(self.model, needed)
        nll = -logps[rows < pairs].sum() / step["targets"]
        if not self.beta:
            return self.nll_weight * nll, {"nll": nll}
        ratios = row_sums(logps, rows, count).view(2, pairs).T - self.reference_sums(batch)
        if self.name in AVERAGED:
            ratios = ratios / row_sums(torch.ones_like(logps), rows, count).view(2, pairs).T.clamp(min=1)
        chosen, rejected = ratios.unbind(1)
        preference = LOSSES[self.name](chosen, rejected, self.beta, self.label_smoothing).sum() / step["samples"]
        margins = self.beta * (chosen - rejected).detach()
        figures = {
            "preference": preference, "nll": nll, "margin": margins.sum() / step["samples"], "accuracy": (margins > 0).float().sum() / step["samples"],
            "chosen": self.beta * chosen.sum() / step["samples"], "rejected": self.beta * rejected.sum() / step["samples"],
        }  # fmt: skip
        total = preference + self.nll_weight * nll if self.nll_weight else preference
        return total, figures

    def update(self, step: Batch, totals: Figures) -> None:
        """Check the first step's start point, then update as usual.

        Raises:
            SpeedlitError: policy and reference differ before anything was trained.
        """
        if self.global_step == 0 and self.beta and self.trainer.world_size == 1:
            margin = float(totals["margin"])
            limit = 1e-4 if self.backbone.dtype == "float32" and "bf16" not in str(self.trainer.precision) else 0.5
            dropout = self.adapter is None and self._has_dropout()
            if math.isfinite(margin) and abs(margin) > limit and not dropout:
                raise SpeedlitError(f"at step 0 policy and reference differ (margin {margin:.2g}): the reference is not the model that training starts from")
        super().update(step, totals)

    def _has_dropout(self) -> bool:
        return any(isinstance(layer, torch.nn.Dropout) and layer.p > 0 for layer in self.model.modules())
