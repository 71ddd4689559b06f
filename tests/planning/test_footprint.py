"""Shapes, FLOPs and memory by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from speedlit.files import read_json
from speedlit.models.adapter import LoRA
from speedlit.models.backbone import Backbone
from speedlit.planning.footprint import Fit, Shape, flops, known_shape, memory, shape_of, trained
from tests.helpers import tiny_bert, tiny_llama, tiny_qwen3

PUBLISHED = {  # as the models' safetensors headers count
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_public_shapes_have_the_published_parameters(name: str) -> None:
    shape = known_shape(name)
    assert shape is not None
    assert shape.parameters == PUBLISHED[name]


def test_an_unknown_model_has_no_shape() -> None:
    assert known_shape("someone/own-model") is None


@pytest.mark.parametrize("make", [tiny_llama, tiny_bert])
def test_a_local_config_gives_the_real_count(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = make(tmp_path / "m")
    kind = AutoModel if make is tiny_bert else AutoModelForCausalLM
    model = kind.from_config(AutoConfig.from_pretrained(folder), **({"add_pooling_layer": False} if make is tiny_bert else {}))
    assert shape_of(read_json(folder / "config.json")).parameters == sum(weight.numel() for weight in model.parameters())


def test_a_head_of_its_own_size_counts(tmp_path: Path) -> None:
    folder = tiny_qwen3(tmp_path / "m")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    norms = 2 * 2 * 8  # of queries and keys, two layers of head size 8: the count leaves them out
    assert shape_of(read_json(folder / "config.json")).parameters == sum(weight.numel() for weight in model.parameters()) - norms


SMALL = Shape(hidden=8, intermediate=16, layers=2, heads=2, kv_heads=1, vocabulary=10, head_dim=4)


def fit(**over: object) -> Fit:
    plain: dict[str, object] = {
        "rank": None, "targets": "all-linear", "quantized": False, "dtype": "float32", "recompute": False, "cached": False,
        "batch": 4, "micro": 2, "length": 10, "epochs": 1.0, "steps": None,
    }  # fmt: skip
    return Fit(**{**plain, **over})  # type: ignore[arg-type]


def test_a_small_shape_by_hand() -> None:
    block = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16 + 2 * 8  # q, k and v, o, the MLP, two norms
    assert SMALL.parameters == 2 * 10 * 8 + 2 * block + 8
    assert SMALL.adapter(3, ["q_proj", "down_proj"]) == 2 * 3 * ((8 + 8) + (16 + 8))
    assert SMALL.adapter(3, "all-linear") == 2 * 3 * (16 + 12 + 12 + 16 + 24 + 24 + 24)


def test_flops_follow_the_formula_that_is_printed() -> None:
    n, tokens = SMALL.parameters, 1000
    assert flops(SMALL, fit(), tokens, tokens) == 6 * n * tokens
    lora = fit(rank=3, recompute=True)
    assert flops(SMALL, lora, tokens, tokens) == (4 * n + 6 * trained(SMALL, lora) + 2 * n) * tokens
    assert lora.formula == "4NT + 6AT + 2NT (recomputed)"
    assert flops(SMALL, fit(reference="each"), tokens, 500) == 8 * n * tokens
    assert flops(SMALL, fit(reference="once", epochs=2), tokens, 500) == 6 * n * tokens + 2 * n * 500


def test_steps() -> None:
    assert fit().steps_for(9) == 3
    assert fit(epochs=2.0).steps_for(9) == 5
    assert fit(steps=2, epochs=1e9).steps_for(9) == 2


def test_memory_by_hand() -> None:
    n = SMALL.parameters
    full = memory(SMALL, fit())
    assert (full["weights"], full["gradients"], full["optimizer"]) == (4 * n, 4 * n, 8 * n)
    assert full["activations"] == 2 * 10 * 2 * 34 * 2 * 8 + 8 * 20 * 10  # tokens x layers x (34 bytes doubled in 32 bits) x hidden, and logits
    assert full["total"] == sum(value for name, value in full.items() if name != "total")
    lora = fit(rank=3, dtype="bfloat16")
    small = memory(SMALL, lora)
    assert small["gradients"] == 4 * trained(SMALL, lora)
    assert small["weights"] == 2 * n + 4 * trained(SMALL, lora)
    assert memory(SMALL, fit(rank=3, dtype="bfloat16", recompute=True))["activations"] < small["activations"]
    assert memory(SMALL, fit(rank=3, quantized=True))["weights"] < small["weights"]
    assert memory(SMALL, fit(copy=True))["weights"] == 8 * n


@pytest.mark.parametrize("kind", ["full", "lora", "recomputed"])
def test_the_formula_agrees_with_a_counter_on_the_real_model(kind: str, tmp_path: Path) -> None:
    """torch counts the products that run; the formula leaves attention's scores and the smallest products out."""
    folder = tiny_llama(tmp_path / "m", hidden_size=128, intermediate_size=384, num_hidden_layers=4, tie_word_embeddings=True)
    shape = shape_of(read_json(folder / "config.json"))
    backbone = Backbone(str(folder), gradient_checkpointing=kind == "recomputed")
    model = backbone.build(head=True)
    model.requires_grad_(True)
    plan = fit(rank=8 if kind == "lora" else None, recompute=kind == "recomputed")
    if kind == "lora":
        model = LoRA(r=8).apply(model)
    model.train()
    ids = torch.randint(3, 300, (2, 48))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert flops(shape, plan, ids.numel(), ids.numel()) == pytest.approx(counter.get_total_flops(), rel=0.1)
