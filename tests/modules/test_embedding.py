"""The embedder: the same gradients for any number of ranks and chunks, with every term of the loss."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from speedlit.data import collate
from speedlit.data.samples import Samples
from speedlit.data.shards import ShardSet, write_shards
from speedlit.data.steps import Steps
from speedlit.data.tokens import POOLINGS, TokenContract
from speedlit.errors import UsageError
from speedlit.models.backbone import Backbone, hidden_states
from speedlit.models.pooling import embed
from speedlit.modules.embedding import EmbeddingModule
from speedlit.pipeline.fitting import fit
from tests.helpers import contrastive_rows, tiny_bert, tiny_llama
from tests.modules.recipes import in_ranks, recipe

Result = tuple[torch.Tensor, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"))  # with dropout


def made(place: Path, **settings: Any) -> EmbeddingModule:
    module = EmbeddingModule(Backbone(str(place), attention="bidirectional"), tokens=TokenContract(pooling="mean"), **{"temperature": 0.2, **settings})
    module.configure_model()
    module.model.requires_grad_(True)
    return module


def result(module: EmbeddingModule, batch: dict[str, Any], samples: int) -> Result:
    loss, _ = module.loss(batch, {"samples": samples})
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}


def rows(negatives: int, kind: str = "sts") -> list[dict[str, Any]]:
    """Seven rows, uneven over two and three ranks; uneven numbers of negatives, equal texts, grades for all but one."""
    found = contrastive_rows(7, (kind,), negatives)
    if negatives:
        found[2]["negatives"] = found[2]["negatives"][:1]  # type: ignore[index]
        found[5]["positive"] = found[1]["positive"]
        for index, row in enumerate(found):
            row["scores"] = [] if index == 4 else [5.0, *(float(index % (n + 2)) for n in range(len(row["negatives"])))]  # type: ignore[arg-type]
    return found


# What the loss is made of: hard negatives, task kind, settings.
VARIANTS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "pairs": (0, "sts", {}),
    "negatives": (3, "sts", {}),
    "symmetric": (1, "sts", {"directions": ["query_to_doc", "doc_to_query"], "partition": "per_direction"}),
    "all directions": (2, "sts", {"directions": ["query_to_doc", "doc_to_query", "query_to_query", "doc_to_doc"]}),
    "margin": (2, "sts", {"margin": 0.01}),
    "no in-batch negatives": (2, "classification", {"no_in_batch": ["classification"], "directions": ["query_to_doc", "doc_to_query"]}),
    "matryoshka": (2, "sts", {"matryoshka": [32, 8], "matryoshka_weights": [1.0, 0.5]}),
    "learned temperature": (2, "sts", {"learn_temperature": True}),
    "graded": (2, "sts", {"graded": "kl", "graded_weight": 0.5, "graded_temperature": 2.0}),
}


def variant(base: Path, shards: Path, name: str, rank: int, world: int) -> Result:
    """Loss and gradients of one rank's part of a batch of seven."""
    negatives, kind, settings = VARIANTS[name]
    module = made(base, **settings)
    samples = Samples([ShardSet(shards / f"{negatives}-{kind}")], collate.encode_contrastive, module.tokenizer, module.tokens)
    step = Steps(samples, "contrastive", 7, 4, seed=0, rank=rank, world=world)[0]
    assert len(step["micro"]) == 1
    return result(module, step["micro"][0], step["samples"])


def ranks(base: Path, shards: Path, out: Path) -> None:
    """All variants in one process group; gradients are averaged as ddp does, after the module has multiplied them."""
    import torch.distributed as dist

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=world)
    found = {}
    for name in VARIANTS:
        loss, gradients = variant(base, shards, name, rank, world)
        for tensor in (loss, *gradients.values()):
            dist.all_reduce(tensor)
        found[name] = loss, gradients
    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_have_the_gradients_of_one_process(base: Path, tmp_path: Path, world: int) -> None:
    for negatives, kind in {VARIANTS[name][:2] for name in VARIANTS}:
        write_shards(rows(negatives, kind), tmp_path / f"{negatives}-{kind}", "contrastive")
    assert in_ranks(world, ranks, base, tmp_path, tmp_path / "found.pt") == [0] * world
    found = torch.load(tmp_path / "found.pt")
    for name in VARIANTS:
        loss, gradients = variant(base, tmp_path, name, 0, 1)
        assert torch.allclose(found[name][0], loss, atol=1e-6), name
        assert ("log_scale" in gradients) == (name == "learned temperature")
        assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-3
        for key, gradient in gradients.items():
            assert torch.allclose(found[name][1][key], gradient, atol=1e-6), (name, key)


def test_one_exchange_of_gradients_per_step(base: Path, tmp_path: Path) -> None:
    write_shards(contrastive_rows(24, ("sts",), 1), tmp_path / "contrastive", "contrastive")
    counter = [{"class_path": "tests.modules.witness.Exchanges", "init_args": {"path": str(tmp_path / "exchanges")}}]
    config = recipe(
        tmp_path, "contrastive", model={"backbone": {"name": str(base), "attention": "bidirectional"}, "recompute": True},
        data={"micro_batch": 2}, trainer={"devices": 2, "strategy": "ddp", "max_steps": 3, "callbacks": counter},
    )  # fmt: skip
    assert in_ranks(2, fit, config, tmp_path / "fit") == [0, 0]
    assert (tmp_path / "exchanges").read_text().split() == ["1", "1", "1"]


@pytest.mark.parametrize("fits", ["nothing", "two chunks", "all"])
def test_chunks_computed_again_give_the_same_gradients_with_dropout_on(bert: Path, monkeypatch: pytest.MonkeyPatch, fits: str) -> None:
    free = {"nothing": 0.0, "all": 1e12}
    monkeypatch.setattr("speedlit.modules.embedding.free_bytes", lambda device: free[fits])
    found, again = {}, {}
    for recompute in (False, True, "auto"):
        module = made(bert, recompute=recompute)
        samples = collate.encode_contrastive(module.tokenizer, module.tokens, contrastive_rows(9, ("sts",), 2))
        batch = collate.collate_contrastive(samples, 0, 3, chunk=8)
        assert len(batch["chunks"]) == 5
        module.token_bytes = 100.0 if fits == "two chunks" else 0.0  # else it is measured
        free["two chunks"] = 200.5 * sum(ids.numel() for ids, _ in batch["chunks"][-2:])  # half of it is used
        torch.manual_seed(4)
        again[recompute] = module.computed_again(batch["chunks"])
        found[recompute] = result(module, batch, 9)
    assert again == {False: 0, True: 4, "auto": {"nothing": 4, "two chunks": 3, "all": 0}[fits]}
    assert module.token_bytes == 100 or module.token_bytes > 4 * 32 * 2 * 6  # two layers keep many vectors of a token
    for recompute in (True, "auto"):
        assert torch.equal(found[False][0], found[recompute][0])
        for name, gradient in found[False][1].items():
            assert torch.allclose(found[recompute][1][name], gradient, atol=1e-7), name


def test_an_uneven_number_of_negatives_and_kinds_without_in_batch(base: Path) -> None:
    module = made(base, no_in_batch=["classification"], temperature=0.1)
    module.model.eval()
    found = contrastive_rows(3, ("classification",), 2)
    found[1]["negatives"] = found[1]["negatives"][:1]  # type: ignore[index]
    samples = collate.encode_contrastive(module.tokenizer, module.tokens, found)
    batch = collate.collate_contrastive(samples, 0, 3, None)
    queries, documents = module.vectors(batch)
    assert documents[1, 2].abs().sum() == 0
    expected = 0.0
    for i, count in enumerate((3, 2, 3)):
        scores = documents[i, :count] @ queries[i] / 0.1
        expected -= torch.log_softmax(scores, 0)[0] / 3
    loss, figures = module.loss(batch, {"samples": 3})
    assert torch.allclose(loss, expected, atol=1e-5)
    assert float(figures["negatives"]) == pytest.approx(5 / 3)


def test_a_learned_temperature_is_trained_saved_and_not_decayed(base: Path, tmp_path: Path) -> None:
    write_shards(contrastive_rows(40, ("sts",), 1), tmp_path / "contrastive", "contrastive")
    model = {"backbone": {"name": str(base), "attention": "bidirectional"}, "learn_temperature": True, "temperature": 0.05}
    config = recipe(tmp_path, "contrastive", model=model, optimizer={"class_path": "AdamW", "init_args": {"lr": 1e-3, "weight_decay": 0.5}})
    result = fit(config, tmp_path / "fit", progress=False)
    saved = torch.load(tmp_path / "fit" / "checkpoints" / "last.ckpt", weights_only=True)
    temperature = float(torch.exp(-saved["state_dict"]["log_scale"]))
    assert temperature != pytest.approx(0.05, abs=1e-5)
    assert result["final"]["temperature"] == pytest.approx(temperature, rel=1e-2)
    module = EmbeddingModule(Backbone(str(base), attention="bidirectional"), learn_temperature=True)
    module.configure_model()
    assert module.log_scale is not None
    assert module.log_scale.ndim == 0  # which is what base.py asks before it decays a weight


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_vectors_do_not_depend_on_the_side_of_the_padding_or_on_neighbours(base: Path, pooling: str, attention: str) -> None:
    model = Backbone(str(base), attention=attention).build(head=False)
    texts = [[1, 17, 23, 2], [1, 9, 2], [1, 30, 31, 32, 33, 34, 2]]
    right, mask = collate.pad_ids(texts, 0)
    left, turned = right.clone(), mask.flip(1)
    for index, text in enumerate(texts):
        left[index] = torch.tensor([0] * (7 - len(text)) + text)

    def vectors(ids: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return embed(hidden_states(model, ids, m), m, pooling, True)

    with torch.no_grad():
        one, two = vectors(right, mask), vectors(left, turned)
        alone = torch.cat([vectors(*collate.pad_ids([text], 0)) for text in texts])
    assert torch.allclose(one, two, atol=1e-5)
    assert torch.allclose(one, alone, atol=1e-5)


def test_what_the_embedder_refuses(base: Path) -> None:
    backbone = Backbone(str(base))
    for settings, said in (
        ({"temperature": 0.0}, "above 0"),
        ({"directions": ["query_to_docs"]}, "query_to_docs.*choose among query_to_doc"),
        ({"directions": ["doc_to_query"]}, "name query_to_doc"),
        ({"partition": "both"}, "joint or per_direction"),
        ({"partition": "per_direction", "directions": ["query_to_doc", "doc_to_doc"]}, "doc_to_doc hold no positive"),
        ({"graded": "mse"}, "kl, margin_mse or null"),
        ({"contrast": 0.0}, "nothing is trained"),
        ({"matryoshka": [8], "matryoshka_weights": [1.0, 2.0]}, "one for each size"),
        ({"recompute": "sometimes"}, "true, false or auto"),
    ):
        with pytest.raises(UsageError, match=said):
            EmbeddingModule(backbone, **settings)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="has 64, and the model's vectors have 32"):
        EmbeddingModule(backbone, matryoshka=[64, 8]).configure_model()


