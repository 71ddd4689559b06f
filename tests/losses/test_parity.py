"""Same weights, same tokens: our losses and gradients are those of TRL to 1e-5."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from speedlit.data import collate
from speedlit.data.tokens import TokenContract
from speedlit.losses.logprobs import token_logps
from speedlit.losses.preference import LOSSES, sigmoid
from speedlit.models.backbone import Backbone
from speedlit.modules.dpo import DPOModule
from speedlit.modules.sft import SFTModule
from tests.helpers import preference_rows, sft_rows, tiny_llama

COMMON: dict[str, Any] = {
    "report_to": [], "use_cpu": True, "max_length": None, "gradient_checkpointing": False, "bf16": False, "save_strategy": "no",
    "per_device_train_batch_size": 6,
}  # fmt: skip


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same(ours: tuple[torch.Tensor, dict[str, torch.Tensor]], theirs: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> None:
    assert torch.allclose(ours[0], theirs[0], atol=1e-5, rtol=1e-5), (ours[0], theirs[0])
    assert set(ours[1]) == set(theirs[1])
    scale = max(float(g.abs().max()) for g in theirs[1].values())
    for name, gradient in theirs[1].items():
        assert torch.allclose(ours[1][name], gradient, atol=1e-5 * max(scale, 1.0)), name


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "base")


def test_sft_equals_trl(base: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    module = SFTModule(Backbone(str(base)), None, TokenContract())
    module.configure_model()
    samples = collate.encode_sft(module.tokenizer, module.tokens, sft_rows(6))
    batch = collate.collate_rows(samples, 0)
    loss, _ = module.loss(batch, {"targets": sum(s["targets"] for s in samples)})
    loss.backward()
    ours = loss.detach(), gradients(module.model)
    module.model.zero_grad()

    rows = [{"input_ids": s["rows"][0][0], "completion_mask": [int(label != -100) for label in s["rows"][0][1]]} for s in samples]
    model = Backbone(str(base)).build(head=True).train()
    args = SFTConfig(output_dir=str(tmp_path / "trl"), completion_only_loss=True, **COMMON)
    trainer = SFTTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=module.tokenizer)
    inputs = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(model, inputs)
    theirs.backward()
    assert_same(ours, (theirs.detach(), gradients(model)))


CASES: dict[str, dict[str, Any]] = {
    "sigmoid": {"loss": "sigmoid"},
    "hinge": {"loss": "hinge"},
    "ipo": {"loss": "ipo"},
    "robust": {"loss": "robust", "label_smoothing": 0.2},
    "apo_zero": {"loss": "apo_zero"},
    "apo_down": {"loss": "apo_down"},
    "sppo": {"loss": "sppo"},
    "discopop": {"loss": "discopop", "loss_args": {"tau": 0.2}},
    "exo": {"loss": "exo", "label_smoothing": 0.1},
    "nca": {"loss": "nca"},
    "with nll": {"loss": "sigmoid", "nll_weight": 0.7},
}
THEIRS = {"sppo": "sppo_hard", "exo": "exo_pair", "nca": "nca_pair"}


@pytest.mark.parametrize("case", list(CASES))
def test_preference_losses_equal_trl(base: Path, tmp_path: Path, case: str) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    settings = CASES[case]
    module = DPOModule(Backbone(str(base)), None, TokenContract(), beta=0.3, **settings)
    module.configure_model()
    torch.manual_seed(5)
    for weight in module.model.parameters():
        weight.data += 0.05 * torch.randn_like(weight)  # a policy that has left its reference
    policy, reference = copy.deepcopy(module.model), copy.deepcopy(module.frozen)
    rows = preference_rows(6)
    samples = collate.encode_preference(module.tokenizer, module.tokens, rows)
    loss, figures = module.loss(collate.collate_rows(samples, 0), {"targets": sum(s["targets"] for s in samples), "samples": 6})
    loss.backward()
    ours = loss.detach(), gradients(module.model)
    assert abs(float(figures["margin"])) > 1e-3

    kinds, weights = [THEIRS.get(settings["loss"], settings["loss"])], [1.0]
    if "nll_weight" in settings:
        kinds, weights = [*kinds, "sft"], [*weights, settings["nll_weight"]]
    args = DPOConfig(
        output_dir=str(tmp_path / "trl"), beta=0.3, loss_type=kinds, loss_weights=weights, label_smoothing=settings.get("label_smoothing", 0.0),
        discopop_tau=settings.get("loss_args", {}).get("tau", 0.05), **COMMON,
    )  # fmt: skip
    plain = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
    trainer = DPOTrainer(model=policy, ref_model=reference, args=args, train_dataset=Dataset.from_list(plain), processing_class=module.tokenizer)
    examples = []
    for sample in samples:
        (chosen, labels), (rejected, _) = sample["rows"]
        length = sum(label == -100 for label in labels)
        examples.append({"prompt_ids": chosen[:length], "chosen_ids": chosen[length:], "rejected_ids": rejected[length:]})
    policy.train()
    theirs = trainer.compute_loss(policy, trainer.data_collator(examples))
    theirs.backward()
    assert_same(ours, (theirs.detach(), gradients(policy)))


def test_label_smoothing_by_hand() -> None:
    chosen, rejected = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.5])
    logits = 0.4 * (chosen - rejected)
    expected = -(0.9 * torch.log(torch.sigmoid(logits)) + 0.1 * torch.log(torch.sigmoid(-logits)))
    assert torch.allclose(sigmoid(chosen, rejected, 0.4, 0.1), expected)


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_prefers_the_chosen(name: str) -> None:
    """One value per pair, and a step against the gradient parts the pair; also far from 0, where nothing may overflow."""
    for size in (1.0, 30.0):
        values = torch.tensor([[-1.0, -2.0], [-3.0, -1.5]]) * size
        chosen, rejected = (v.clone().requires_grad_() for v in values.unbind(1))
        loss = LOSSES[name](chosen, rejected, 0.4)
        assert loss.shape == (2,)
        loss.sum().backward()
        assert torch.isfinite(chosen.grad).all() and torch.isfinite(rejected.grad).all()
        if size == 1:
            assert (rejected.grad - chosen.grad > 0).all()


@pytest.mark.parametrize("name", ["simpo", "orpo"])
def test_losses_without_reference_equal_trl(base: Path, tmp_path: Path, name: str) -> None:
    """Through the trainers' own batches: TRL's CPO trainer for simpo with NLL, its ORPO trainer's odds ratio term."""
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    settings: dict[str, Any] = {"loss_args": {"gamma": 0.7}, "nll_weight": 0.5} if name == "simpo" else {"nll_weight": 0.0}
    module = DPOModule(Backbone(str(base)), None, TokenContract(), beta=0.3, loss=name, **settings)
    module.configure_model()
    assert module.frozen is None
    samples = collate.encode_preference(module.tokenizer, module.tokens, preference_rows(6))
    batch = collate.collate_rows(samples, 0)
    loss, _ = module.loss(batch, {"targets": sum(s["targets"] for s in samples), "samples": 6})
    loss.backward()
    ours = loss.detach(), gradients(module.model)

    model = Backbone(str(base)).build(head=True).train()
    plain = [{key: str(row[key]) for key in ("prompt", "chosen", "rejected")} for row in preference_rows(6)]
    options = {"output_dir": str(tmp_path / "trl"), "beta": 0.3, **COMMON, "max_length": 512}
    kind: Any = CPOTrainer if name == "simpo" else ORPOTrainer
    args = CPOConfig(loss_type="simpo", simpo_gamma=0.7, cpo_alpha=0.5, **options) if name == "simpo" else ORPOConfig(**options)
    trainer = kind(model=model, args=args, train_dataset=Dataset.from_list(plain), processing_class=module.tokenizer)
    model.train()
    theirs_batch: dict[str, torch.Tensor] = {}
    for side, half in (("chosen", slice(0, 6)), ("rejected", slice(6, 12))):
        theirs_batch |= {f"{side}_input_ids": batch["ids"][half], f"{side}_labels": batch["labels"][half]}
        theirs_batch[f"{side}_attention_mask"] = (torch.arange(batch["ids"].shape[1]) < batch["lengths"][half, None]).long()
    if name == "simpo":
        theirs = trainer.compute_loss(model, theirs_batch)
    else:
        chosen, rejected, *_ = trainer.concatenated_forward(model, theirs_batch)
        theirs = -trainer.odds_ratio_loss(chosen, rejected)[0].mean()
    theirs.backward()
    assert_same(ours, (theirs.detach(), gradients(model)))


def test_orpo_brings_its_own_nll_and_needs_no_reference(base: Path) -> None:
    module = DPOModule(Backbone(str(base)), None, TokenContract(), loss="orpo", beta=0.2)
    module.configure_model()
    batch = collate.collate_rows(collate.encode_preference(module.tokenizer, module.tokens, preference_rows(3)), 0)
    targets = int((batch["labels"][:3, 1:] != -100).sum())
    loss, figures = module.loss(batch, {"targets": targets, "samples": 3})
    logits = module.model(batch["ids"]).logits.log_softmax(-1)[:, :-1].gather(2, batch["labels"][:, 1:].clamp(min=0)[..., None])[..., 0]
    counted = batch["labels"][:, 1:] != -100
    means = (logits * counted).sum(1) / counted.sum(1)
    odds = torch.exp(means) / (1 - torch.exp(means))
    expected = -(logits[:3] * counted[:3]).sum() / targets - 0.2 * torch.log(torch.sigmoid(torch.log(odds[:3] / odds[3:]))).mean()
    assert torch.allclose(loss, expected, atol=1e-5)


def halved(chosen: torch.Tensor, rejected: torch.Tensor, beta: float, scale: float = 1.0) -> torch.Tensor:
    """A loss of somebody else's."""
    return scale * sigmoid(chosen, rejected, beta) / 2


def test_a_loss_by_its_dotted_path(base: Path) -> None:
    batch, found = None, []
    for loss, args in (("sigmoid", {}), ("tests.losses.test_parity.halved", {"scale": 2.0})):
        module = DPOModule(Backbone(str(base)), None, TokenContract(), loss=loss, loss_args=args)
        module.configure_model()
        batch = batch or collate.collate_rows(collate.encode_preference(module.tokenizer, module.tokens, preference_rows(3)), 0)
        found.append(module.loss(batch, {"targets": 9, "samples": 3})[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunked_log_probs_equal_plain_logits(chunk: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(3, 9, 16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=True)
    labels = torch.randint(0, 50, (3, 9))
    labels[:, :4] = -100
    labels[1, 7:] = -100
    found, rows = token_logps(hidden, weight, labels, chunk=chunk)
    found.sum().backward()
    ours = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    plain = torch.log_softmax(hidden @ weight.T, -1)[:, :-1].gather(2, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    keep = labels[:, 1:] != -100
    assert torch.allclose(found, plain[keep], atol=1e-5)
    assert rows.tolist() == keep.nonzero()[:, 0].tolist()
    plain[keep].sum().backward()
    assert torch.allclose(ours[0], hidden.grad, atol=1e-5)
    assert torch.allclose(ours[1], weight.grad, atol=1e-5)


def test_log_probs_in_bfloat16_stay_near_float32() -> None:
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(2, 30, 64), 0.1 * torch.randn(200, 64), torch.randint(0, 200, (2, 30))
    exact = token_logps(hidden.bfloat16().float(), weight.bfloat16().float(), labels)[0]
    found = token_logps(hidden.bfloat16(), weight.bfloat16(), labels)[0]
    assert found.dtype == torch.float32
    assert abs(float(found.mean() - exact.mean())) < 1e-3 * abs(float(exact.mean()))
