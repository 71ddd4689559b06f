"""Preference optimisation: the senior generator. The policy starts at its reference, so step 0 has margin 0."""

from __future__ import annotations

import copy
import hashlib
import inspect
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable

from speedlit.data.tokens import TokenContract
from speedlit.errors import SpeedlitError, UsageError
from speedlit.files import content_id
from speedlit.losses.logprobs import row_sums
from speedlit.losses.preference import LOSSES, Loss
from speedlit.models.adapter import LoRA, QLoRA, keep_frozen, only_frozen
from speedlit.models.backbone import Backbone
from speedlit.models.threads import side_by_side
from speedlit.modules.base import Batch, Figures, Schedule, SpeedModule, check_head, target_logps
from speedlit.plugins import load, plugins

REFERENCES = ("adapter_off", "frozen_adapter", "copy", "precomputed")


class DPOModule(SpeedModule):
    """DPO and its relatives over what each pair's completions got.

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
        loss: sigmoid, robust, hinge, ipo, apo_zero, apo_down, sppo, discopop, exo, nca; simpo and orpo, which need no reference;
            or the dotted path of a function like those in speedlit.losses.preference.
        beta: strength of the pull to the reference; 0 switches the preference term off (then nll_weight must be above 0).
        nll_weight: weight of the chosen completions' negative log-likelihood per token; null: 1 for orpo, else 0.
        label_smoothing: assumed share of flipped pairs (sigmoid, robust, exo, simpo).
        loss_args: what else the loss takes: gamma (simpo), tau (discopop).
        reference: adapter_off; frozen_adapter (the finished adapters are not merged but kept frozen under the trained one, the only
            way over a base in 4 bits); copy (a frozen one); precomputed (one pass over the data before training, kept beside the shards:
            no copy is held, and from the second epoch on it saves time); null: adapter_off or frozen_adapter with an adapter, else copy.
    """

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
        loss: str = "sigmoid",
        beta: float = 0.1,
        nll_weight: float | None = None,
        label_smoothing: float = 0.0,
        loss_args: dict[str, float] | None = None,
        reference: str | None = None,
    ) -> None:
        self.preference = find_loss(loss)
        nll_weight = float(getattr(self.preference, "nll_weight", 0.0)) if nll_weight is None else nll_weight
        if beta < 0 or nll_weight < 0 or (beta == 0 and nll_weight == 0):
            raise UsageError(f"DPOModule has beta {beta} and nll_weight {nll_weight}: neither may be negative, and one must be above 0")
        if not 0 <= label_smoothing < 0.5:
            raise UsageError(f"DPOModule.label_smoothing is {label_smoothing}; it lies in [0, 0.5)")
        self.settings = checked_settings(loss, self.preference, {**(loss_args or {}), **({"label_smoothing": label_smoothing} if label_smoothing else {})})
        super().__init__(backbone, adapter, tokens, optimizer, schedule, clip, seed)
        self.whole = adapter is None or adapter.train_embeddings  # switching the adapter off does not give the start model
        self.beta, self.nll_weight, self.reference = beta, nll_weight, self._checked(reference)
        self.compares = bool(beta) and getattr(self.preference, "reference", True)
        self.averaged = bool(getattr(self.preference, "averaged", False))
        self.frozen: Any = None
        self.precomputed: torch.Tensor | None = None

    def _checked(self, reference: str | None) -> str:
        beside = isinstance(self.adapter, QLoRA) and bool(self.backbone.chain()[1])  # nothing can be merged into 4 bits
        self.beside = beside or reference == "frozen_adapter"
        reference = reference or ("copy" if self.whole else "frozen_adapter" if beside else "adapter_off")
        if reference not in REFERENCES:
            raise UsageError(f"DPOModule.reference is {reference!r}; choose {', '.join(REFERENCES[:-1])} or {REFERENCES[-1]}")
        if reference in ("adapter_off", "frozen_adapter") and self.whole:
            raise UsageError(f"DPOModule.reference is {reference}, but weights outside the adapter are trained, so the reference would move; set it to copy")
        return reference

    def build(self) -> Any:
        """The network without the trained adapter; finished adapters that are kept beside it come after that."""
        if not self.beside:
            return super().build()
        return self.backbone.build(self.head, self.adapter.quantization() if self.adapter else None, merge=False)

    def assemble(self) -> None:
        """Build the policy, and the frozen copy where one is needed."""
        super().assemble()
        if self.beside:
            keep_frozen(self.model, self.backbone.chain()[1])
        if self.compares and (self.reference == "copy" or self.reference == "precomputed" and self.whole):
            self.frozen = copy.deepcopy(self.model).requires_grad_(False).eval()

    def networks(self) -> list[Any]:
        """The policy, and the frozen copy."""
        return [self.model, *([self.frozen] if self.frozen is not None else [])]

    def refuse_spread(self) -> None:
        """Combinations that can't work with spread weights.

        Raises:
            UsageError: what, why, and the nearest that works.
        """
        super().refuse_spread()
        if self.compares and self.reference == "precomputed":
            near = "copy (it is spread as well)" if self.whole else "null, which takes the policy without its adapter"
            raise UsageError(f"DPOModule.reference is precomputed, whose pass over the data has unequal parts per rank, which fsdp can't do; set it to {near}")

    def on_fit_start(self) -> None:
        """Probes of the base, and of the head."""
        super().on_fit_start()
        check_head(self.model)
        if self.compares and self.reference == "precomputed":
            self.precompute()

    def precompute(self) -> None:
        """The reference's log-prob of every chosen and rejected completion (samples, 2): read from beside the shards, else made and put there."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        name = f"reference-{self.fingerprint()}"
        table = data.load_table(name, 2)
        if not self.trainer.strategy.reduce_boolean_decision(table is not None, all=True):
            table = self.sweep(data)
            if self.global_rank == 0:
                data.save_table(name, table)
        self.precomputed = torch.as_tensor(table, device=self.device)
        if not data.validation:
            self.frozen = None

    def sweep(self, data: Any) -> Any:
        """One pass of the reference over the training data, shared by all ranks."""
        count, batches = data.sweep()
        table = torch.zeros(count, 2, device=self.device)
        for batch in batches:
            batch = self.transfer_batch_to_device(batch, self.device, 0)
            with self.trainer.precision_plugin.forward_context():
                table[batch["places"]] = self.reference_sums(batch)
        return self.trainer.strategy.reduce(table, reduce_op="sum").cpu().numpy()

    def fingerprint(self) -> str:
        """Of the reference's weights and the precision it is computed in."""
        model, digest = self.frozen if self.frozen is not None else self.model, hashlib.sha256()
        for name, weight in model.named_parameters():
            if self.frozen is not None or not weight.requires_grad:
                digest.update(name.encode())
                digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return content_id([digest.hexdigest(), str(self.trainer.precision)])

    def start_model(self) -> AbstractContextManager[Any]:
        """The policy as it was before training."""
        context: AbstractContextManager[Any] = only_frozen(self.model) if self.beside else self.model.disable_adapter()
        return context

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """The policy is the start model, without dropout and gradients."""
        if self.frozen is not None:
            with torch.no_grad():
                yield
            return
        self.model.eval()
        try:
            with torch.no_grad(), self.start_model():
                yield
        finally:
            self.model.train(self.training)

    def sums(self, batch: Batch) -> torch.Tensor:
        """Inside ``as_reference``: what the reference gives to each chosen and rejected completion (pairs, 2)."""
        return by_pair(*target_logps(self.model if self.frozen is None else self.frozen, batch), len(batch["names"]))

    def reference_sums(self, batch: Batch) -> torch.Tensor:
        """What the reference gives to each chosen and rejected completion (pairs, 2), computed now unless it is known."""
        if self.precomputed is not None and self.training:
            return self.precomputed[batch["places"]]
        if "reference" in batch:
            known: torch.Tensor = batch["reference"]
            return known
        with self.as_reference():
            return self.sums(batch)

    def training_step(self, step: Batch, index: int) -> None:
        """One optimizer step. Where passes run side by side, the reference's come first: it may be the policy with its adapter switched off."""
        if self.compares and self.precomputed is None and self.apart():
            with self.as_reference():
                found = list(side_by_side([partial(self.sums, batch) for batch in step["micro"]]))
            step = {**step, "micro": [{**batch, "reference": sums} for batch, sums in zip(step["micro"], found, strict=True)]}
        super().training_step(step, index)

    def loss(self, batch: Batch, step: Batch) -> tuple[torch.Tensor, Figures]:
        """Preference term per pair of the step, plus the NLL term per chosen token of the step."""
        pairs = len(batch["names"])
        reference = self.reference_sums(batch) if self.compares else 0.0
        logps, owners = target_logps(self.model, batch if self.beta else chosen_only(batch))
        nll = -logps[owners < pairs].sum() / step["targets"]
        if not self.beta:
            return self.nll_weight * nll, {"nll": nll}
        values = by_pair(logps, owners, pairs) - reference
        if self.averaged:
            values = values / by_pair(torch.ones_like(logps), owners, pairs).clamp(min=1)
        chosen, rejected = values.unbind(1)
        preference = self.preference(chosen, rejected, self.beta, **self.settings).sum() / step["samples"]
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
        if self.global_step == 0 and self.compares and self.trainer.world_size == 1:
            margin = float(totals["margin"])
            limit = 1e-4 if self.backbone.dtype == "float32" and "bf16" not in str(self.trainer.precision) else 0.5
            dropout = self.adapter is None and self.has_dropout()
            if math.isfinite(margin) and abs(margin) > limit and not dropout:
                raise SpeedlitError(f"at step 0 policy and reference differ (margin {margin:.2g}): the reference is not the model that training starts from")
        super().update(step, totals)


def by_pair(values: torch.Tensor, owners: torch.Tensor, pairs: int) -> torch.Tensor:
    """Sums of the values of each chosen and rejected completion: (pairs, 2). Owners count the chosen ones, then the rejected."""
    return row_sums(values, owners, 2 * pairs).view(2, pairs).T


def chosen_only(batch: Batch) -> Batch:
    """The batch without its rejected completions; in rows of both, what lies behind the last chosen token is cut off."""
    pairs = len(batch["names"])
    if "owners" not in batch:
        return {**batch, **{name: batch[name][:pairs] for name in ("ids", "labels", "lengths")}}
    width = int(((batch["owners"] < pairs) & (batch["groups"] >= 0)).any(0).nonzero().max()) + 1
    return {**batch, **{name: batch[name][:, :width] for name in ("ids", "labels", "positions", "groups", "branches", "owners")}}


def find_loss(name: str) -> Loss:
    """A preference loss by its name, a plug-in's by its entry point, or any function by its dotted path.

    Raises:
        UsageError: neither.
    """
    if name in LOSSES:
        return LOSSES[name]
    if "." not in name and name not in plugins():
        raise UsageError(f"DPOModule.loss is {name!r}; choose among {', '.join(LOSSES)}, or give the dotted path of a function")
    found = load(name, "DPOModule.loss")
    if not callable(found) or list(inspect.signature(found).parameters)[:3] != ["chosen", "rejected", "beta"]:
        raise UsageError(f"DPOModule.loss {name} must be a function of (chosen, rejected, beta, ...), as those in speedlit.losses.preference")
    loss: Loss = found
    return loss


def checked_settings(name: str, loss: Loss, settings: dict[str, float]) -> dict[str, float]:
    """Settings of a loss that it takes.

    Raises:
        UsageError: one that it doesn't take, values it can't have, or a result that isn't one number per pair.
    """
    known = list(inspect.signature(loss).parameters)[3:]
    strange = [key for key in settings if key not in known]
    if strange:
        raise UsageError(f"DPOModule.loss {name} has no {', '.join(strange)}; it takes {', '.join(known) or 'nothing but beta'}")
    some = torch.tensor([-1.0, -2.0])
    try:
        found = loss(some, some.flip(0), 1.0, **settings)
    except (ArithmeticError, ValueError) as error:
        raise UsageError(f"DPOModule.loss {name} with {settings} can't be computed: {error}") from error
    if found.shape != some.shape or not torch.isfinite(found).all():
        raise UsageError(f"DPOModule.loss {name} with {settings} gives {found.tolist()} for two pairs; it must give one number for each")
    return settings
