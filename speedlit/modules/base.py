"""The base of all modules: backbone and adapter, optimizer and schedule, the optimizer step, slim checkpoints.

A leaf says how to compute the loss of one micro-batch. One item from the data module is one optimizer step of this rank;
its loss is a sum over target tokens (or pairs) divided by how many the whole step has over all ranks and micro-batches.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable

from speedlit.data.tokens import TokenContract
from speedlit.errors import SpeedlitError, UsageError
from speedlit.labels import IGNORE
from speedlit.losses.logprobs import token_logps
from speedlit.models.adapter import LoRA, QLoRA, adapter_parameters
from speedlit.models.allocator import keep_freed_memory
from speedlit.models.backbone import Backbone, hidden_states, probe_attention
from speedlit.models.fast import FAMILIES, speed_up
from speedlit.models.folder import save_folder
from speedlit.models.masks import is_causal, packed_mask, probe_packing
from speedlit.models.sharding import alike, average_gradients, clip, inside, most, shard
from speedlit.models.slices import empty, fill, to_be_filled
from speedlit.models.splitting import split
from speedlit.models.threads import Gradients, add_gradients, lanes, side_by_side
from speedlit.models.unpack import settings
from speedlit.progress import say
from speedlit.shares import whole
from speedlit.strategies import data_group, data_ranks, sharded, split_over

Batch = dict[str, Any]
Figures = dict[str, torch.Tensor]


@dataclass
class Schedule:
    """The learning rate over the run.

    Args:
        kind: linear (down to 0), cosine (down to 0) or constant.
        warmup_steps: optimizer steps of linear warm-up.
        warmup_ratio: the same as a share of all steps; used where warmup_steps is null.
    """

    kind: str = "linear"
    warmup_steps: int | None = None
    warmup_ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "cosine", "constant"):
            raise UsageError(f"schedule.kind is {self.kind!r}; choose linear, cosine or constant")

    def factor(self, step: int, total: float) -> float:
        """What the peak rate is multiplied with in step ``step`` (from 0) of ``total``."""
        warm = self.warmup_steps if self.warmup_steps is not None else math.ceil(self.warmup_ratio * total) if self.warmup_ratio else 0
        if step < warm:
            return (step + 1) / warm  # never 0: the first step must move the weights
        if self.kind == "constant":
            return 1.0
        share = min(1.0, (step - warm) / max(total - warm, 1))
        return 1.0 - share if self.kind == "linear" else 0.5 * (1 + math.cos(math.pi * share))


def adamw(params: Iterable[Any]) -> torch.optim.Optimizer:
    """AdamW at 1e-4, for a config that names no optimizer."""
    return torch.optim.AdamW(params, lr=1e-4, weight_decay=0.0)


class SpeedModule(L.LightningModule):
    """Backbone + adapter + optimizer; see the module's docstring.

    Args:
        backbone: the network.
        adapter: LoRA, QLoRA, or null: all weights are trained.
        tokens: the token contract.
        optimizer: makes the optimizer of parameters (class_path and init_args in a config).
        schedule: the learning rate over the run.
        clip: largest norm of the gradient; null never clips.
        seed: of dropout; step n always draws the same numbers, whatever happened before it. Null: ``seed_everything``.
    """

    role = "generator"
    head = True
    independent = False  # whether ``loss`` changes nothing, so that micro-batches may be computed side by side

    def __init__(
        self,
        backbone: Backbone,
        adapter: LoRA | QLoRA | None = None,
        tokens: TokenContract = TokenContract(),  # noqa: B008 - frozen
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule = Schedule(),  # noqa: B008 - never changed
        clip: float | None = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # a step has several backward passes; see training_step
        self.strict_loading = False  # checkpoints leave frozen weights out
        self.backbone, self.adapter, self.tokens = backbone, adapter, tokens
        self.make_optimizer, self.schedule, self.clip = optimizer or adamw, schedule, clip
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.tokenizer = backbone.tokenizer()
        tokens.bos_id(self.tokenizer), tokens.eos_id(self.tokenizer)  # refuse now what can't work later
        self.model: Any = None
        self.swift = False
        self.figures: dict[str, float] = {}

    # -- what a leaf defines --------------------------------------------------------------------------------------

    def loss(self, batch: Batch, step: Batch) -> tuple[torch.Tensor, Figures]:
        """This micro-batch's share of the step's loss, and sums of figures to show (shares of the step, too)."""
        raise NotImplementedError

    # -- the model ------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the network; Lightning may call this more than once."""
        if isinstance(self.model, torch.nn.Module):
            return
        self.assemble()
        self.model.train()  # weights are loaded in eval mode, and Lightning leaves the mode alone
        self.counts = self.parameter_counts()
        if self.spread:
            self.refuse_spread()
            narrow = str(self.trainer.precision).startswith("bf16") and not isinstance(self.adapter, QLoRA)
            strategy: Any = self.trainer.strategy
            for network in self.networks():
                if self.together > 1:
                    split(network, self.device_mesh["tensor_parallel"], self.trainer.world_size)  # type: ignore[index]
                shard(network, self.device_mesh["data_parallel"], narrow, strategy.cpu_offload)  # type: ignore[index]
                fill(network, torch.device("cpu") if strategy.cpu_offload else strategy.root_device)

    @property
    def spread(self) -> bool:
        """Whether the weights are spread over processes."""
        return self._trainer is not None and sharded(self.trainer.strategy)

    @property
    def together(self) -> int:
        """How many processes share each matrix, and compute the same samples."""
        return 1 if self._trainer is None else split_over(self.trainer.strategy)

    @property
    def data_group(self) -> Any:
        """The processes among which the samples are shared out, where that is not all of them; else None."""
        return None if self._trainer is None else data_group(self.trainer.strategy)

    def assemble(self) -> None:
        """Build the network with its adapter into ``self.model``."""
        model = self.build()
        if self.adapter is None:
            model.requires_grad_(True)
        self.model = empty(self.adapter.apply(model) if self.adapter else model)
        if self.backbone.fast and self._trainer is not None and self.trainer.precision == "bf16-mixed" and not self.spread:
            self.swift = speed_up(self.model) > 0 and type(getattr(self.model, "get_base_model", lambda: self.model)()).__module__ in FAMILIES

    def networks(self) -> list[Any]:
        """All networks whose weights are spread."""
        return [self.model]

    def refuse_spread(self) -> None:
        """Combinations that can't work with spread weights.

        Raises:
            UsageError: what, why, and the nearest that works.
        """
        if isinstance(self.adapter, QLoRA) and self.together > 1:
            raise UsageError(f"trainer.strategy.tensor_parallel_size is {self.together}, but a matrix in 4 bits can't be split; set it to 1, or take LoRA")
        if isinstance(self.adapter, QLoRA) and self.adapter.storage != self.backbone.dtype:
            raise UsageError(
                f"trainer.strategy fsdp gathers a layer's weights as one piece, but adapter.storage is {self.adapter.storage} and backbone.dtype "
                f"{self.backbone.dtype}; set both to bfloat16, or take ddp"
            )

    def build(self) -> Any:
        """The network without the trained adapter; where weights are spread, without its weights, if they can be read share by share."""
        quantization = self.adapter.quantization() if self.adapter else None
        shell = to_be_filled(self.backbone, self.head) if self.spread and quantization is None else None
        return self.backbone.build(self.head, quantization) if shell is None else shell

    def on_fit_start(self) -> None:
        """Look whether attention is as asked; say what is trained."""
        if self.trainer.precision == "16-mixed":  # clipping and the check for NaN would look at gradients that are still scaled
            raise UsageError("trainer.precision is 16-mixed, whose scaled gradients this trainer doesn't handle; set it to bf16-mixed or 32-true")
        probe_attention(self.model, self.backbone.attention)
        self.probe_rows()
        if self.device.type == "cpu":
            keep_freed_memory()
        self._fresh = [name for name, weight in adapter_parameters(self.model).items() if not whole(weight.detach()).any()]  # in the same order on all ranks
        if self.global_rank == 0:
            trained, total = self.counts
            say(f"{type(self).__name__}: {trained:,} of {total:,} parameters are trained ({trained / max(total, 1):.2%})")

    def probe_rows(self) -> None:
        """Where the data put several sequences into a row, look whether the model keeps them apart; the data know what to do if not."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if getattr(data, "several", False):
            try:
                probe_packing(self.model)
            except SpeedlitError as error:
                data.apart(str(error))

    def parameter_counts(self) -> tuple[int, int]:
        """Trainable parameters, and all; a packed 4-bit weight counts with its real size."""
        weights = list(self.model.parameters())
        sizes = [math.prod(w.quant_state.shape) if getattr(w, "quant_state", None) is not None else w.numel() for w in weights]
        return sum(size for w, size in zip(weights, sizes, strict=True) if w.requires_grad), sum(sizes)

    # -- the optimizer step ---------------------------------------------------------------------------------------

    def training_step(self, step: Batch, index: int) -> None:
        """One optimizer step: all micro-batches backward, then clip, check, update."""
        rank, ranks = data_ranks(self.trainer)  # those who compute the same samples together also draw the same dropout
        torch.manual_seed((self.seed * 1_000_003 + self.global_step) * 4099 + rank)
        totals: Figures = {}
        micro = self.even(step["micro"])
        if self.apart():
            weights = [weight for weight in self.parameters() if weight.requires_grad]
            for gradients, figures in side_by_side([partial(self.one_pass, batch, step, weights) for batch in micro]):
                add_gradients(weights, gradients)
                for name, value in figures.items():
                    totals[name] = totals.get(name, 0) + value
            return self.update(step, totals)
        for number, batch in enumerate(micro, 1):
            with self.synchronised(number == len(micro)):
                loss, figures = self.loss(batch, step)
                part = 0.0 if batch.get("idle") else 1.0  # a rank without samples only goes along
                self.manual_backward(loss * (part * ranks))  # whose gradients are averaged
            for name, value in {"loss": loss.detach(), **figures}.items():
                totals[name] = totals.get(name, 0) + part * value.detach()
        self.update(step, totals)

    def apart(self) -> bool:
        """Whether passes may run side by side: a network with our own fast paths, on one process's CPU, drawing no random numbers."""
        plain = self.independent and self.swift and not self.backbone.gradient_checkpointing  # which restores random states as it goes
        return plain and self.device.type == "cpu" and self.trainer.world_size == 1 and lanes() > 1 and not self.has_dropout()

    def one_pass(self, batch: Batch, step: Batch, weights: Sequence[torch.Tensor]) -> tuple[Gradients, Figures]:
        """Gradients and figures of one micro-batch, changing nothing."""
        loss, figures = self.loss(batch, step)
        return torch.autograd.grad(loss, weights, allow_unused=True), {name: value.detach() for name, value in {"loss": loss, **figures}.items()}

    def has_dropout(self) -> bool:
        """Whether the network draws random numbers in training."""
        parts = list(self.model.modules())
        return any(isinstance(layer, torch.nn.Dropout) and layer.p > 0 for layer in parts) or any(getattr(layer, "attention_dropout", 0) for layer in parts)

    def even(self, micro: list[Batch]) -> list[Batch]:
        """Where weights are spread, all ranks gather them equally often: those with fewer micro-batches repeat the last one without effect."""
        if not self.spread:
            return micro
        return [*micro, *({**micro[-1], "idle": True} for _ in range(most(len(micro), self.device) - len(micro)))]

    def synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Exchange gradients between ranks after the last micro-batch only."""
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return nullcontext() if last or block is None else block()

    def update(self, step: Batch, totals: Figures) -> None:
        """Clip, refuse what is not finite before it reaches the weights, update, remember the figures."""
        optimizer: Any = self.optimizers()
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        limit = self.clip if self.clip is not None else math.inf
        if self.spread:
            average_gradients(weights)
        norm = clip(weights, limit)
        sums = torch.stack([totals[name].float() for name in totals])
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, self.data_group, reduce_op="sum")  # so that all ranks judge alike, and the figures are those of the step
        values = torch.cat([norm.detach().float()[None], sums]).tolist()  # one transfer
        if not all(map(math.isfinite, values)):
            raise self.not_finite(step, dict(zip(["gradient norm", *totals], values, strict=True)))
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        self.figures = {**dict(zip(totals, values[1:], strict=True)), "lr": rate, "grad_norm": values[0], "tokens": float(step["tokens"])}
        if self.global_step == 1:
            self.check_moved()

    def not_finite(self, step: Batch, values: dict[str, float]) -> SpeedlitError:
        """The error for a loss or gradient that is not a number."""
        which = ", ".join(f"{name} {value}" for name, value in values.items() if not math.isfinite(value))
        names = [name for batch in step["micro"] for name in batch["names"]]
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        place = Path(self.trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        good = f"The last good checkpoint is {place}" if place.exists() else f"There is no {place} yet"
        return SpeedlitError(
            f"step {self.global_step + 1}: {which}; the weights were not changed. Samples of the step: {shown}. "
            f"{good}; a lower learning rate, a smaller clip or bfloat16 in place of float16 may mend it"
        )

    def check_moved(self) -> None:
        """After the first step every adapter that began at zero must have moved, and be finite.

        Raises:
            SpeedlitError: one has not; it gets no gradient, so it would train nothing.
        """
        weights = adapter_parameters(self.model)
        still = [name for name in self._fresh if name in weights and not whole(weights[name].detach()).any()]
        wild = [name for name, weight in weights.items() if not torch.isfinite(whole(weight.detach())).all()]
        if (still or wild) and not str(self.trainer.precision).startswith("16"):  # fp16 may skip its first steps
            counts = f"{len(still)} adapters have not moved and {len(wild)} are not finite"
            raise SpeedlitError(f"after step 1 {counts}, such as {(still + wild)[0]}; check adapter.targets")

    def configure_optimizers(self) -> Any:
        """The optimizer over trainable weights (no decay on vectors such as norms and biases) and its schedule."""
        trained = [weight for weight in self.parameters() if weight.requires_grad]
        groups: list[dict[str, Any]] = [{"params": [w for w in trained if w.ndim > 1]}, {"params": [w for w in trained if w.ndim <= 1], "weight_decay": 0.0}]
        optimizer = self.make_optimizer([group for group in groups if group["params"]])
        single = not self.spread or isinstance(optimizer, torch.optim.Adam)  # whose one call takes shares, too
        for group in optimizer.param_groups:
            if not alike(group["params"]):  # no one call updates both shares and whole weights
                group.update({name: False for name in ("fused", "foreach") if group.get(name, False) is None})
            elif single and group.get("fused", False) is None and not group.get("foreach"):
                group["fused"] = True  # one call for all weights, on the CPU as well
        if self.schedule.kind != "constant" and math.isinf(self.trainer.estimated_stepping_batches):
            raise UsageError(f"schedule.kind {self.schedule.kind} must know where the run ends: set trainer.max_epochs or trainer.max_steps, or take constant")
        total = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # -- evaluation -----------------------------------------------------------------------------------------------

    def validation_step(self, step: Batch, index: int) -> None:
        """Loss without update, weighted as in training."""
        self._look("val", step)

    def test_step(self, step: Batch, index: int) -> None:
        """Loss without update, weighted as in training."""
        self._look("test", step)

    def _look(self, name: str, step: Batch) -> None:
        totals: Figures = {}
        for batch in self.even(step["micro"]):
            loss, figures = self.loss(batch, step)
            part = 0.0 if batch.get("idle") else 1.0
            for key, value in {"loss": loss, **figures}.items():
                totals[key] = totals.get(key, 0) + part * value
        if self.trainer.world_size > 1:  # each rank has a share of the step's figures
            totals = {key: self.trainer.strategy.reduce(value, self.data_group, reduce_op="sum") for key, value in totals.items()}
        self.log_dict({f"{name}_{key}": value for key, value in totals.items()}, batch_size=self.weight(step), on_epoch=True)

    def weight(self, step: Batch) -> int:
        """What the step's loss is a mean over."""
        return int(step["samples"])

    # -- checkpoints and the finished folder ----------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave frozen weights out; put in what a model folder is made of beside them."""
        trained = {name for name, weight in self.named_parameters() if weight.requires_grad}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in trained}
        said = settings(self.role, self.head, self.backbone, self.adapter, self.tokens, Path(self.trainer.default_root_dir))
        checkpoint["speedlit"] = {"module": type(self).__name__, **said}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other weights or of another token contract.

        Raises:
            UsageError: says which.
        """
        if self.model is not None:
            trained = {name for name, weight in self.named_parameters() if weight.requires_grad}
            lost = trained - set(checkpoint["state_dict"])
            if lost:
                what = f"{len(lost)} of the trained weights, such as {min(lost)}"
                raise UsageError(f"the checkpoint lacks {what}: it belongs to another model or adapter; start in another folder")
        found = checkpoint.get("speedlit", {}).get("tokens")
        if found is not None and TokenContract.from_json(found) != self.tokens:
            raise UsageError("the checkpoint was trained with another token contract (model.init_args.tokens); start in another folder or put it back")

    def save_model(self, out: Path) -> Path:
        """Write the finished model folder; where weights are spread, all ranks must come here, and the first one writes."""
        weights = self.whole_weights() if self.spread else None
        if self.spread and self.global_rank:
            return out
        return save_folder(self.model, self.tokenizer, out, role=self.role, backbone=self.backbone, tokens=self.tokens, weights=weights)

    def whole_weights(self) -> dict[str, torch.Tensor]:
        """The weights that the finished folder holds, gathered one by one; empty but on the first rank."""
        found: dict[str, torch.Tensor] = {}
        for name, weight in self.model.named_parameters(remove_duplicate=False):
            if weight.requires_grad or self.adapter is None:
                value = whole(weight.detach())
                if self.global_rank == 0:
                    found[name] = value.cpu()
        return found


def output_head(model: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight (V, D) and bias of the language-model head."""
    head = model.get_output_embeddings()
    return head.weight, getattr(head, "bias", None)


def target_logps(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-prob of each target token (N,), and which sequence it belongs to (N,): its row, or its owner in rows that hold several."""
    return inside(model, lambda: _target_logps(model, batch))


def _target_logps(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    weight, bias = output_head(model)
    if "groups" in batch:
        mask: Any = packed_mask(model, batch["groups"], batch["branches"], batch["positions"])
    else:  # rows are padded on the right, so causal attention needs no mask
        mask = None if is_causal(model) else (torch.arange(batch["ids"].shape[1], device=weight.device) < batch["lengths"][:, None]).long()
    wanted = (batch["labels"][:, 1:] != IGNORE).nonzero(as_tuple=True)
    logps, rows = token_logps(hidden_states(model, batch["ids"], mask, batch.get("positions"), wanted), weight, batch["labels"], bias)
    return logps, batch["owners"][:, 1:][batch["labels"][:, 1:] != IGNORE] if "owners" in batch else rows


@torch.no_grad()
def check_head(model: Any) -> None:
    """Our log-probs are made from hidden states and the head's weight; see whether that is all this model does.

    Raises:
        SpeedlitError: its logits are something else (soft-capped or scaled, as in gemma2 and cohere).
    """
    training = model.training
    model.eval()
    ids = (torch.arange(6, device=next(model.parameters()).device)[None] * 5 + 3) % model.config.vocab_size
    ours = inside(model, lambda: _logits(model, ids))
    theirs = model(input_ids=ids).logits.float()
    model.train(training)
    if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max())):
        kind = model.config.model_type
        raise SpeedlitError(f"the logits of a {kind} model are not just hidden states times its head (soft-capped or scaled); this module can't train it yet")


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    weight, bias = output_head(model)
    return torch.nn.functional.linear(hidden_states(model, ids, None).to(weight.dtype), weight, bias).float()
