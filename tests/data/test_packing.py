"""Rows of several sequences: nobody sees a neighbour, and losses and gradients are those of separate rows to 1e-5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from speedlit.data import collate, packing
from speedlit.data.tokens import TokenContract
from speedlit.errors import SpeedlitError
from speedlit.losses.logprobs import row_sums
from speedlit.models.backbone import Backbone, hidden_states
from speedlit.models.masks import packed_mask, probe_packing
from speedlit.modules.base import target_logps
from speedlit.modules.dpo import DPOModule, chosen_only
from tests.helpers import preference_rows, sentence, sft_rows, tiny_llama, tiny_mistral, tiny_qwen3

FAMILIES = {"llama": tiny_llama, "mistral": tiny_mistral, "qwen3": tiny_qwen3}
Outcome = tuple[torch.Tensor, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: make(root / name) for name, make in FAMILIES.items()}


def outcome(loss: torch.Tensor, model: torch.nn.Module) -> Outcome:
    """A loss and its gradients."""
    model.zero_grad()
    loss.backward()
    return loss.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same(one: Outcome, two: Outcome) -> None:
    assert torch.allclose(one[0], two[0], atol=1e-5, rtol=1e-5), (one[0], two[0])
    assert one[1].keys() == two[1].keys()
    assert max(float(g.abs().max()) for g in one[1].values()) > 1e-2
    for name, gradient in one[1].items():
        assert torch.allclose(two[1][name], gradient, atol=1e-5, rtol=1e-5), name


def test_bins_are_filled_best_fit_decreasing() -> None:
    assert packing.best_fit([5, 3, 3, 2, 7, 1], 8) == [[4, 5], [0, 1], [2, 3]]
    assert packing.best_fit([2, 12], 8) == [[1], [0]]  # what fits nowhere has a bin of its own
    lengths = [int(n) for n in torch.randint(1, 33, (500,), generator=torch.Generator().manual_seed(0))]
    bins = packing.best_fit(lengths, 64)
    assert sorted(i for found in bins for i in found) == list(range(500))
    assert all(sum(lengths[i] for i in found) <= 64 for found in bins)
    assert sum(lengths) / (64 * len(bins)) > 0.98


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_packed_rows_train_as_separate_ones(places: dict[str, Path], family: str, implementation: str, attention: str) -> None:
    backbone = Backbone(str(places[family]), attention=attention, attn_implementation=implementation)
    model = backbone.build(head=True).train()
    samples = collate.encode_sft(backbone.tokenizer(), TokenContract(), sft_rows(9))
    separate = collate.collate_rows(samples, 0)
    units = packing.packed(samples, room=64)
    together = packing.collate_units(units, samples, 0)
    assert len(together["ids"]) < 6
    assert any(len(unit.members) > 2 for unit in units)
    sums, losses = [], []
    for batch in (separate, together):
        logps, owners = target_logps(model, batch)
        found = row_sums(logps, owners, 9)
        sums.append({name: float(value) for name, value in zip(batch["names"], found.detach(), strict=True)})
        losses.append(outcome(-logps.sum() / sum(s["targets"] for s in samples), model))
    assert sums[1] == pytest.approx(sums[0], abs=1e-4)
    assert_same(*losses)


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", list(FAMILIES))
@torch.no_grad()
def test_a_neighbour_is_never_seen(places: dict[str, Path], family: str, implementation: str, attention: str) -> None:
    """Every token of the others changes: hidden states don't move by a bit. Without the mask they do, so that this can fail."""
    model = Backbone(str(places[family]), attention=attention, attn_implementation=implementation).build(head=False)
    probe_packing(model)
    samples = [{"id": str(n), "rows": [(list(range(10 * n + 5, 10 * n + 5 + length)), [1] * length)]} for n, length in enumerate((6, 4, 9))]
    batch = packing.collate_units(packing.packed(samples, room=32), samples, 0)
    assert batch["ids"].shape == (1, 19)
    mask = packed_mask(model, batch["groups"], batch["branches"], batch["positions"])
    before = hidden_states(model, batch["ids"], mask, batch["positions"])
    leaked = False
    for group in range(3):
        own = batch["groups"] == group
        other = torch.where(own, batch["ids"], batch["ids"] + 60)
        assert torch.equal(hidden_states(model, other, mask, batch["positions"])[own], before[own])
        plain = [hidden_states(model, ids, torch.ones_like(ids), batch["positions"])[own] for ids in (batch["ids"], other)]
        leaked = leaked or not torch.equal(*plain)
    assert leaked


@torch.no_grad()
def test_an_encoder_keeps_packed_texts_apart_too(tmp_path: Path) -> None:
    from tests.helpers import tiny_bert

    probe_packing(Backbone(str(tiny_bert(tmp_path / "bert")), attention="bidirectional").build(head=False))


def test_a_model_that_does_not_obey_is_refused(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = Backbone(str(places["llama"])).build(head=False)
    monkeypatch.setattr("speedlit.models.masks.packed_mask", lambda model, groups, *_: torch.ones_like(groups))
    with pytest.raises(SpeedlitError, match="the sequences of a row see each other; set data.pack"):
        probe_packing(model)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(SpeedlitError, match="flash_attention_2 attention takes no dense mask"):
        probe_packing(model)
    monkeypatch.undo()
    model.config.layer_types = ["full_attention", "linear_attention"]
    model.config._attn_implementation = "sdpa"
    with pytest.raises(SpeedlitError, match="linear_attention layers"):
        probe_packing(model)


def test_layers_of_two_kinds_get_a_mask_each(places: dict[str, Path]) -> None:
    model = Backbone(str(places["qwen3"])).build(head=False)
    model.config.layer_types, model.config.sliding_window, model.config.use_sliding_window = ["full_attention", "sliding_attention"], 3, True
    groups = torch.zeros(1, 6, dtype=torch.long)
    made = packed_mask(model, groups, groups, torch.arange(6)[None])
    assert isinstance(made, dict)
    assert (made["full_attention"][0, 0, 5] == 0).tolist() == [True] * 6
    assert (made["sliding_attention"][0, 0, 5] == 0).tolist() == [False] * 3 + [True] * 3


def test_the_first_label_of_a_piece_never_counts() -> None:
    """A sequence without prompt: nothing may be predicted from the end of the row's sequence before."""
    samples: list[dict[str, Any]] = [{"id": str(n), "rows": [([n + 5, n + 6, n + 7], [n + 5, n + 6, n + 7])]} for n in range(3)]
    batch = packing.collate_units(packing.packed(samples, room=9), samples, 0)
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 7, 8, -100, 8, 9]]
    assert batch["positions"].tolist() == [[0, 1, 2] * 3]
    assert batch["owners"].tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2]]


def test_a_pair_shares_its_prompt_in_one_row() -> None:
    sample = {"id": "x", "rows": [([1, 10, 11, 20, 21], [-100] * 3 + [20, 21]), ([1, 10, 11, 30], [-100] * 3 + [30])]}
    batch = packing.collate_units(packing.shared([sample]), [sample], 0)
    assert batch["ids"].tolist() == [[1, 10, 11, 20, 21, 11, 30]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 20, 21, -100, 30]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    assert batch["branches"].tolist() == [[0, 0, 1, 1, 1, 2, 2]]
    assert batch["owners"].tolist() == [[0, 0, 0, 0, 0, 1, 1]]
    cut = {**sample, "rows": [sample["rows"][0], ([10, 11, 30, 31, 32], [-100] * 2 + [30, 31, 32])]}  # truncation left another prompt
    assert len(packing.shared([cut])[0].rows) == 2


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_shared_prefix_trains_as_separate_rows(places: dict[str, Path], family: str, implementation: str) -> None:
    backbone = Backbone(str(places[family]), attn_implementation=implementation)
    module = DPOModule(backbone, None, TokenContract(max_length=40), beta=0.3, nll_weight=0.5, loss="ipo")
    module.configure_model()
    torch.manual_seed(5)
    for weight in module.model.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    rows = preference_rows(7)
    rows[3] |= {"prompt": sentence(3, 25), "chosen": " the", "rejected": " " + sentence(3, 25)}  # its prompt is cut, the chosen one's is not
    samples = collate.encode_preference(module.tokenizer, module.tokens, rows)
    step = {"targets": sum(s["targets"] for s in samples), "samples": 7}
    units = packing.shared(samples)
    assert [len(unit.rows) for unit in units] == [1, 1, 1, 2, 1, 1, 1]
    found = []
    for batch in (collate.collate_rows(samples, 0), packing.collate_units(units, samples, 0)):
        loss, figures = module.loss(batch, step)
        assert abs(float(figures["margin"])) > 1e-3
        found.append((outcome(loss, module.model), {name: float(value.detach()) for name, value in figures.items()}))
    assert_same(found[0][0], found[1][0])
    assert found[1][1] == pytest.approx(found[0][1], abs=1e-5)
    module.beta = 0.0  # the chosen completions alone
    alone = [outcome(module.loss(batch, step)[0], module.model) for batch in (collate.collate_rows(samples, 0), packing.collate_units(units, samples, 0))]
    assert_same(*alone)


def test_without_its_rejected_completions_a_row_is_shorter() -> None:
    sample = {"id": "x", "rows": [([1, 10, 11, 20], [-100] * 3 + [20]), ([1, 10, 11, 30, 31, 32], [-100] * 3 + [30, 31, 32])]}
    batch = packing.collate_units(packing.shared([sample]), [sample], 0)
    assert chosen_only(batch)["ids"].tolist() == [[1, 10, 11, 20]]


def test_sharing_pays_where_prompts_are_long() -> None:
    def sample(prompt: int, answer: int) -> dict[str, Any]:
        sequence = [7] * (prompt + answer), [-100] * prompt + [7] * answer
        return {"id": "x", "rows": [sequence, sequence]}

    assert packing.sharing_pays([sample(230, 210)])
    assert not packing.sharing_pays([sample(60, 300)])
