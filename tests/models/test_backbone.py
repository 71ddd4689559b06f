"""Attention is what was asked; adapters fit; what can't be loaded is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from speedlit.data.tokens import TokenContract
from speedlit.errors import SpeedlitError, UsageError
from speedlit.models.adapter import LoRA, QLoRA, adapter_parameters, linear_names
from speedlit.models.backbone import Backbone, hidden_states, probe_attention, resolve
from speedlit.models.folder import load_folder, save_folder
from speedlit.models.pooling import embed, pool
from tests.helpers import tiny_bert, tiny_llama, tiny_mistral, tiny_qwen3

DECODERS = {"llama": tiny_llama, "mistral": tiny_mistral, "qwen3": tiny_qwen3}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("family", list(DECODERS))
def test_attention_is_as_asked_and_the_probe_sees_when_it_is_not(tmp_path: Path, family: str, attention: str, implementation: str) -> None:
    place = DECODERS[family](tmp_path / family)
    model = Backbone(str(place), attention=attention, attn_implementation=implementation).build(head=False)
    probe_attention(model, attention)
    other = {"causal": "bidirectional", "bidirectional": "causal"}[attention]
    with pytest.raises(SpeedlitError, match=f"attention is {other}"):
        probe_attention(model, other)


def test_a_bidirectional_embedder_sees_beyond_the_sliding_window(tmp_path: Path) -> None:
    model = Backbone(str(tiny_mistral(tmp_path / "m", num_hidden_layers=1)), attention="bidirectional").build(head=False)
    ids, other = torch.arange(20)[None] + 5, torch.arange(20)[None] + 5
    other[0, -1] = 99  # 19 places away from the first, with a window of 4
    mask = torch.ones_like(ids)
    with torch.no_grad():
        assert not torch.equal(hidden_states(model, ids, mask)[:, 0], hidden_states(model, other, mask)[:, 0])


def test_an_encoder_is_bidirectional_and_refuses_to_be_causal(tmp_path: Path) -> None:
    place = tiny_bert(tmp_path / "bert")
    probe_attention(Backbone(str(place), attention="bidirectional").build(head=False), "bidirectional")
    with pytest.raises(SpeedlitError, match="attention is causal"):
        probe_attention(Backbone(str(place), attention="causal").build(head=False), "causal")


@pytest.mark.parametrize("how", ["last", "mean", "weighted_mean", "cls"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_a_vector_does_not_depend_on_padding_or_neighbours(tmp_path: Path, how: str, attention: str) -> None:
    model = Backbone(str(tiny_llama(tmp_path / "l")), attention=attention).build(head=False)
    short, long = [1, 40, 41, 42, 2], [1, *range(50, 62), 2]
    alone = embed(hidden_states(model, torch.tensor([short]), torch.ones(1, 5, dtype=torch.long)), torch.ones(1, 5), how, True)
    for left in (False, True):
        pad = [0] * (len(long) - len(short))
        rows = [pad + short if left else short + pad, long]
        marks = [[0] * len(pad) + [1] * 5 if left else [1] * 5 + [0] * len(pad), [1] * len(long)]
        ids, mask = torch.tensor(rows), torch.tensor(marks)
        inner = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).last_hidden_state
        assert torch.allclose(embed(inner, mask, how, True)[:1], alone, atol=1e-5), f"padding on the {'left' if left else 'right'}"


def test_poolings_by_hand() -> None:
    hidden = torch.tensor([[[9.0], [1.0], [2.0], [3.0]]])
    mask = torch.tensor([[0, 1, 1, 1]])
    found = {how: pool(hidden, mask, how).item() for how in ("last", "cls", "mean", "weighted_mean")}
    assert found == pytest.approx({"last": 3.0, "cls": 1.0, "mean": 2.0, "weighted_mean": (1 * 1 + 2 * 2 + 3 * 3) / 6})
    with pytest.raises(UsageError, match="unknown pooling"):
        pool(hidden, mask, "max")


def test_targets_that_match_nothing_are_refused_with_the_real_names(tmp_path: Path) -> None:
    backbone = Backbone(str(tiny_llama(tmp_path / "l")))
    with pytest.raises(UsageError, match=r"called w1.*down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"):
        LoRA(targets=["q_proj", "w1"]).apply(backbone.build(head=True))
    model = LoRA(r=2, targets=["q_proj"]).apply(backbone.build(head=True))
    assert len(adapter_parameters(model)) == 2
    assert "lm_head" not in linear_names(model)


def test_qlora_holds_four_bits_and_survives_evaluation(tmp_path: Path) -> None:
    backbone = Backbone(str(tiny_llama(tmp_path / "l", hidden_size=64, intermediate_size=128)), dtype="bfloat16")
    adapter = QLoRA(r=4)
    model = adapter.apply(backbone.build(True, adapter.quantization()))
    packed = [p for p in model.parameters() if getattr(p, "quant_state", None) is not None]
    assert packed
    shapes = [p.shape for p in packed]
    model.eval()
    with torch.no_grad():
        model(input_ids=torch.arange(8)[None])
    assert [p.shape for p in packed] == shapes
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.bfloat16}


def chain(tmp_path: Path) -> tuple[Path, Path]:
    """A junior adapter on a base, and a senior adapter on the junior; returns both model folders."""
    base = tiny_llama(tmp_path / "base")
    places = []
    for name, before, targets in (("junior", [], "all-linear"), ("senior", ["junior"], ["q_proj", "v_proj"])):
        backbone = Backbone(str(base), [str(tmp_path / b / "model") for b in before])
        model = LoRA(r=4, targets=targets).apply(backbone.build(head=True))
        torch.manual_seed(len(name) + len(before))
        for weight in adapter_parameters(model).values():
            torch.nn.init.normal_(weight, std=0.1)
        place = save_folder(model, backbone.tokenizer(), tmp_path / name / "model", role="generator", backbone=backbone, tokens=TokenContract(max_length=77))
        torch.save(model.eval()(torch.arange(12)[None]).logits.detach(), tmp_path / f"{name}.pt")
        places.append(place)
    return places[0], places[1]


def test_a_senior_on_a_junior_loads_as_it_was_trained(tmp_path: Path) -> None:
    junior, senior = chain(tmp_path)
    for place in (junior, senior):
        expected = torch.load(tmp_path / f"{place.parent.name}.pt")
        for merge in (True, False):
            loaded = load_folder(place, merge=merge)
            assert torch.allclose(loaded.model(torch.arange(12)[None]).logits, expected, atol=1e-4)
            assert loaded.tokens.max_length == 77
            assert loaded.info["role"] == "generator"
    assert Backbone(str(senior)).chain()[1] == Backbone("x", [str(junior), str(senior)]).chain()[1] == [junior, senior]


def test_finished_folders_can_be_moved_and_hold_no_absolute_path(tmp_path: Path) -> None:
    chain(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    loaded = load_folder(tmp_path / "b" / "senior" / "model")
    assert torch.allclose(loaded.model(torch.arange(12)[None]).logits, torch.load(tmp_path / "b" / "senior.pt"), atol=1e-4)
    for path in (tmp_path / "b").rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), path


def test_full_weights_of_a_stage_replace_the_base(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    backbone = Backbone(str(base))
    model = backbone.build(head=True)
    torch.nn.init.normal_(model.model.layers[0].mlp.up_proj.weight)
    place = save_folder(model, backbone.tokenizer(), tmp_path / "junior" / "model", role="generator", backbone=backbone, tokens=TokenContract())
    again = Backbone(str(base), [str(place)])
    assert again.chain() == (str(place), [])
    assert torch.equal(again.build(head=True).model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)


def test_an_embedder_folder_gives_the_vectors_it_was_saved_with(tmp_path: Path) -> None:
    tokens = TokenContract(pooling="mean", max_length=64)
    for name, make, attention in (("llama", tiny_llama, "bidirectional"), ("bert", tiny_bert, "bidirectional")):
        backbone = Backbone(str(make(tmp_path / name)), attention=attention)
        model = LoRA(r=4).apply(backbone.build(head=False))
        for weight in adapter_parameters(model).values():
            torch.nn.init.normal_(weight, std=0.1)
        place = save_folder(model.eval(), backbone.tokenizer(), tmp_path / name / "out" / "model", role="embedder", backbone=backbone, tokens=tokens)
        loaded = load_folder(place)
        assert loaded.attention == "bidirectional"
        ids, mask = torch.tensor([[1, 30, 31, 2, 0], [1, 33, 34, 35, 2]]), torch.tensor([[1, 1, 1, 1, 0], [1] * 5])
        expected = embed(hidden_states(model, ids, mask), mask, "mean", True)
        assert torch.allclose(loaded.embed(ids, mask), expected, atol=1e-5)
        plain = load_folder(tmp_path / name)
        assert not torch.allclose(plain.embed(ids, mask), expected, atol=1e-3)


def test_a_folder_that_cannot_be_loaded_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place = tiny_llama(tmp_path / "l")
    with pytest.raises(UsageError, match="no such folder"):
        resolve(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE=1"):
        load_folder("nobody/nothing")
    weights = place / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match="damaged|cannot load"):
        load_folder(place)
    weights.unlink()
    with pytest.raises(UsageError, match="no weights"):
        load_folder(place)
    weights.write_bytes(data)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(UsageError, match="don't fit its config"):
        load_folder(place)
    (place / "config.json").write_text(json.dumps(config))
    for path in place.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UsageError, match="no tokenizer"):
        load_folder(place)
    (place / "config.json").unlink()
    with pytest.raises(UsageError, match="no config.json"):
        load_folder(place)
