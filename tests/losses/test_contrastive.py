"""Same weights, same tokens: losses and gradients of the embedder are those of sentence-transformers to 1e-5."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses, modules

from speedlit.data import collate
from speedlit.data.tokens import TokenContract
from speedlit.losses.contrastive import candidates, info_nce, similarities
from speedlit.models.backbone import Backbone
from speedlit.modules.embedding import EmbeddingModule
from tests.helpers import contrastive_rows, tiny_bert

SYMMETRIC = ["query_to_doc", "doc_to_query"]
ALL = [*SYMMETRIC, "query_to_query", "doc_to_doc"]


@pytest.mark.parametrize("negatives", [0, 1, 3])
@pytest.mark.parametrize("directions", [["query_to_doc"], SYMMETRIC, ["query_to_doc", "query_to_query"], ["query_to_doc", "doc_to_doc"], ALL])
def test_directions_equal_those_of_sentence_transformers(negatives: int, directions: list[str]) -> None:
    torch.manual_seed(negatives)
    count, slots = 7, 1 + negatives
    queries, documents = torch.randn(count, 12, requires_grad=True), torch.randn(count, slots, 12, requires_grad=True)
    texts, asked = torch.arange(1, 1 + count * slots).view(count, slots), torch.arange(100, 100 + count)
    for partition in ("joint", "per_direction"):
        if partition == "per_direction" and len({"query_to_query", "doc_to_doc"} & set(directions)):
            continue
        queries.grad = documents.grad = None
        q, d = torch.nn.functional.normalize(queries, dim=-1), torch.nn.functional.normalize(documents, dim=-1)
        allowed, matched = candidates(directions, texts, asked, asked + 1000, texts, asked, 0, True, True)
        ours = info_nce(similarities(q, d, (q, d), directions), allowed, matched, 0.05, partition == "joint").mean()
        ours.backward()
        mine = queries.grad.clone(), documents.grad.clone()
        queries.grad = documents.grad = None
        kind: Any = losses.MultipleNegativesRankingLoss(None, scale=20.0, directions=tuple(directions), partition_mode=partition)
        theirs = kind.compute_loss_from_embeddings([queries, *documents.unbind(1)], None)
        theirs.backward()
        assert torch.allclose(ours, theirs, atol=1e-5)
        assert torch.allclose(mine[0], queries.grad, atol=1e-5)
        assert torch.allclose(mine[1], documents.grad, atol=1e-5)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def matryoshka(inner: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda model: losses.MatryoshkaLoss(model, inner(model), [32, 16, 8], [1.0, 0.5, 0.25])


def plain(model: Any) -> Any:
    return losses.MultipleNegativesRankingLoss(model, scale=10.0)


def cached(model: Any) -> Any:
    return losses.CachedMultipleNegativesRankingLoss(model, scale=10.0, mini_batch_size=2)


def symmetric(model: Any) -> Any:
    return losses.CachedMultipleNegativesSymmetricRankingLoss(model, scale=10.0, mini_batch_size=2)


def guided(model: Any) -> Any:
    return losses.GISTEmbedLoss(model, model, temperature=0.1, margin_strategy="absolute", margin=-0.02, contrast_anchors=False, contrast_positives=False)


SIZES = {"matryoshka": [32, 16, 8], "matryoshka_weights": [1.0, 0.5, 0.25]}
BOTH = {"directions": SYMMETRIC, "partition": "per_direction"}
CASES: dict[str, tuple[Callable[[Any], Any], dict[str, Any], float]] = {
    "plain": (plain, {}, 1.0),
    "cached": (cached, {"recompute": True}, 1.0),
    "symmetric, cached": (symmetric, {**BOTH, "recompute": True}, 1.0),
    "matryoshka": (matryoshka(plain), SIZES, 1.0),
    "matryoshka, cached": (matryoshka(cached), {**SIZES, "recompute": True}, 1.0),
    "matryoshka, symmetric": (matryoshka(symmetric), {**SIZES, **BOTH}, 1.0),
    "margin": (guided, {"margin": 0.02}, 1.0),
    "kl": (lambda model: losses.DistillKLDivLoss(model, student_temperature=0.1), {"graded": "kl", "contrast": 0.0}, 0.01),  # times temperature squared there
    "margin mse": (losses.MarginMSELoss, {"graded": "margin_mse", "contrast": 0.0}, 1.0),
}


@pytest.mark.parametrize("case", list(CASES))
def test_losses_of_a_model_equal_those_of_sentence_transformers(bert: Path, case: str) -> None:
    make, settings, factor = CASES[case]
    rows = contrastive_rows(7, ("sts",), 1)
    for index, row in enumerate(rows):
        row["scores"] = [3.0, 1.0 + index % 3]
    module = EmbeddingModule(Backbone(str(bert), attention="bidirectional"), tokens=TokenContract(pooling="mean"), temperature=0.1, **settings)
    module.configure_model()
    module.model.requires_grad_(True)
    samples = collate.encode_contrastive(module.tokenizer, module.tokens, rows)
    batch = collate.collate_contrastive(samples, 0, 2, chunk=3)
    loss, _ = module.loss(batch, {"samples": 7})
    (factor * loss).backward()
    ours = {name: weight.grad.clone() for name, weight in module.model.named_parameters() if weight.grad is not None}
    module.model.zero_grad()

    transformer = modules.Transformer(str(bert))
    transformer.model = module.model
    theirs: Any = SentenceTransformer(modules=[transformer, modules.Pooling(32, "mean"), modules.Normalize()]).train()
    columns = [[s["query"] for s in samples], *([s["documents"][k] for s in samples] for k in range(2))]
    features = [dict(zip(("input_ids", "attention_mask"), collate.pad_ids(column, 0), strict=True)) for column in columns]
    value = make(theirs)(features, torch.tensor([row["scores"] for row in rows]))
    value.backward()
    assert torch.allclose(factor * loss, value, atol=1e-5, rtol=1e-5)
    found = {name: weight.grad for name, weight in module.model.named_parameters() if weight.grad is not None}
    assert set(found) == set(ours)
    assert max(float(gradient.abs().max()) for gradient in ours.values()) > 1e-3
    for name, gradient in found.items():
        assert torch.allclose(ours[name], gradient, atol=1e-5), name


def test_the_margin_of_that_case_drops_something(bert: Path) -> None:
    """Or else the case above would show nothing."""
    values = []
    for margin in (None, 0.02):
        module = EmbeddingModule(Backbone(str(bert), attention="bidirectional"), tokens=TokenContract(pooling="mean"), temperature=0.1, margin=margin)
        module.configure_model()
        batch = collate.collate_contrastive(collate.encode_contrastive(module.tokenizer, module.tokens, contrastive_rows(7, ("sts",), 1)), 0, 2, None)
        values.append(module.loss(batch, {"samples": 7})[0].item())
    assert values[1] < values[0] - 1e-3


def test_samples_without_grades_add_nothing() -> None:
    from speedlit.losses.contrastive import graded_kl, margin_mse

    own, grades = torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.8, 0.0], [0.5, 0.1, 0.0]]), torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, torch.nan], [torch.nan] * 3])
    kl, mse = graded_kl(own.requires_grad_(), grades, 0.5, 2.0), margin_mse(own, grades)
    target, found = torch.log_softmax(grades[0] / 2, 0), torch.log_softmax(own[0] / 0.5, 0)
    assert torch.allclose(kl[0], (target.exp() * (target - found)).sum())
    assert mse[1].item() == pytest.approx((-0.6 + 1.0) ** 2)
    assert kl[2].item() == mse[2].item() == 0.0
    (kl + mse).sum().backward()
    assert torch.isfinite(own.grad).all()
    assert own.grad[2].abs().sum() == 0
