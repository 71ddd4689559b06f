"""Same weights, same tokens: our losses and gradients are those of TRL and sentence-transformers to 1e-5."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from speedlit.data import collate
from speedlit.data.tokens import TokenContract
from speedlit.losses.contrastive import allowed_documents, allowed_queries, info_nce
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


CASES = {
    "sigmoid": {"loss": "sigmoid"},
    "hinge": {"loss": "hinge"},
    "ipo": {"loss": "ipo"},
    "robust": {"loss": "robust", "label_smoothing": 0.2},
    "with nll": {"loss": "sigmoid", "nll_weight": 0.7},
}


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

    kinds, weights = [settings["loss"]], [1.0]
    if "nll_weight" in settings:
        kinds, weights = [*kinds, "sft"], [*weights, settings["nll_weight"]]
    args = DPOConfig(
        output_dir=str(tmp_path / "trl"), beta=0.3, loss_type=kinds, loss_weights=weights, label_smoothing=settings.get("label_smoothing", 0.0), **COMMON
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
    for loss in LOSSES.values():
        assert loss(chosen, rejected, 0.4, 0.1).shape == (2,)


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


@pytest.mark.parametrize("negatives", [0, 1, 3])
@pytest.mark.parametrize("symmetric", [False, True])
def test_info_nce_equals_sentence_transformers(negatives: int, symmetric: bool) -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss, MultipleNegativesSymmetricRankingLoss

    torch.manual_seed(negatives)
    count, slots = 7, 1 + negatives
    queries, documents = torch.randn(count, 12, requires_grad=True), torch.randn(count, slots, 12, requires_grad=True)
    q, d = torch.nn.functional.normalize(queries, dim=-1), torch.nn.functional.normalize(documents, dim=-1)
    texts, asked = torch.arange(1, 1 + count * slots).view(count, slots), torch.arange(100, 100 + count)
    allowed = allowed_documents(texts, asked, asked + 1000, texts, asked, 0, in_batch=True, mask_equal=True)
    losses = info_nce(q, d.flatten(0, 1), torch.arange(count) * slots, 0.05, allowed)
    if symmetric:
        back = allowed_queries(texts, asked, texts, asked, True)
        losses = (losses + info_nce(d[:, 0], q, torch.arange(count), 0.05, back)) / 2
    ours = losses.mean()
    ours.backward()
    mine = queries.grad.clone(), documents.grad.clone()
    queries.grad = documents.grad = None
    kind = MultipleNegativesSymmetricRankingLoss if symmetric else MultipleNegativesRankingLoss
    theirs = kind(model=None, scale=20.0).compute_loss_from_embeddings([queries, *documents.unbind(1)], None)
    theirs.backward()
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(mine[0], queries.grad, atol=1e-5)
    assert torch.allclose(mine[1], documents.grad, atol=1e-5)
