"""ddp and fsdp over two processes give what one process gives: losses of 20 steps, and the weights at the end."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from speedlit.data.shards import write_shards
from speedlit.errors import UsageError
from speedlit.export import export
from speedlit.files import write_json
from speedlit.models.adapter import QLoRA
from speedlit.models.backbone import Backbone
from speedlit.models.sharding import layers
from speedlit.modules.dpo import DPOModule
from speedlit.modules.sft import SFTModule
from speedlit.pipeline import fitting
from speedlit.strategies import read_folder
from tests.helpers import contrastive_rows, preference_rows, sft_rows, tiny_llama
from tests.modules.recipes import KINDS, in_ranks, recipe

fit = partial(fitting.fit, progress=False)
STEPS = 20
Job = tuple[dict[str, Any], Path]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("strategies")
    tiny_llama(place / "base")
    for shape, rows in (("sft", sft_rows(25)), ("preference", preference_rows(25)), ("contrastive", contrastive_rows(25, negatives=1))):
        write_shards(rows, place / shape, shape)
    return place


def config(root: Path, kind: str, adapter: str, steps: int = STEPS, strategy: Any = None, **backbone: Any) -> dict[str, Any]:
    """Batches of 8, and one sample over in each epoch; micro-batches of 3 that are cut by length, so that ranks have different numbers of them."""
    model: dict[str, Any] = {
        "backbone": {"name": str(root / "base"), "attention": "bidirectional" if kind == "contrastive" else "causal", **backbone},
        "schedule": {"kind": "constant", "warmup_steps": 2},
    }  # fmt: skip
    if adapter != "full":
        model["adapter"] = {"class_path": adapter, "init_args": {"r": 4}}
    if kind == "contrastive":
        model |= {"temperature": 0.1, "learn_temperature": adapter == "full"}
    trainer = {"max_epochs": None, "max_steps": steps, "callbacks": [{"class_path": "Resume", "init_args": {"every_n_steps": 10}}]}
    spread = {"devices": 2, "strategy": strategy} if strategy else {}
    optimizer = {"class_path": "AdamW", "init_args": {"lr": 1e-3, "eps": 1e-3}}  # a large eps: rounding of tiny gradients stays rounding
    return recipe(root, kind, lora=False, model=model, data={"micro_batch": 3, "drop_last": False}, trainer={**trainer, **spread}, optimizer=optimizer)


def all_of(jobs: list[Job]) -> None:
    for settings, place in jobs:
        fit(settings, place)


def trace(place: Path) -> list[tuple[float, float]]:
    with (place / "metrics.csv").open() as stream:
        return [(float(row["loss"]), float(row["grad_norm"])) for row in csv.DictReader(stream)]


def weights(place: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(next((place / "model").glob("*.safetensors"))))


def assert_same(one: Path, two: Path) -> None:
    ours, theirs = trace(one), trace(two)
    assert len(ours) == len(theirs) == STEPS
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, abs=1e-5, rel=1e-5)
    mine, others = weights(one), weights(two)
    assert mine.keys() == others.keys()
    for name, weight in mine.items():
        assert torch.allclose(weight, others[name], atol=1e-5, rtol=0), name


def test_two_processes_give_what_one_gives(root: Path, tmp_path: Path) -> None:
    cases = [(kind, adapter) for kind in KINDS for adapter in ("full", "LoRA")]
    jobs = [(config(root, *case, strategy=s), tmp_path / "-".join((*case, s))) for case in cases for s in ("ddp", "fsdp")]
    assert in_ranks(2, all_of, jobs) == [0, 0]
    for case in cases:
        alone = tmp_path / "-".join((*case, "single"))
        fit(config(root, *case), alone)
        assert trace(alone)[0] != pytest.approx(trace(alone)[-1], rel=1e-3)
        for name in ("ddp", "fsdp"):
            assert_same(alone, tmp_path / "-".join((*case, name)))


def go_on(settings: dict[str, Any], place: Path) -> None:
    """To the end from the checkpoint that lies there; that the recipe has more steps now is no reason to begin anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "_identity", lambda config: "the same")
        (place / fitting.RESULT).unlink(missing_ok=True)
        write_json(place / fitting.STATE, {"id": "the same"})
        fit(settings, place)


def test_a_run_goes_on_with_another_strategy_and_number_of_processes(root: Path, tmp_path: Path) -> None:
    """10 steps of 2 processes under fsdp, then 10 of one; and the other way round; sharded and full checkpoints."""
    full = {"name": "fsdp", "checkpoint": "full"}
    starts = {
        "sharded-full": ("sft", "full", "fsdp"), "sharded-LoRA": ("preference", "LoRA", "fsdp"),
        "file-full": ("sft", "full", full), "file-LoRA": ("preference", "LoRA", full),
    }  # fmt: skip
    jobs = [(config(root, kind, adapter, steps=10, strategy=name), tmp_path / place) for place, (kind, adapter, name) in starts.items()]
    assert in_ranks(2, all_of, jobs) == [0, 0]
    for name, (kind, adapter, _) in starts.items():
        last = tmp_path / name / "checkpoints" / "last.ckpt"
        assert last.is_dir() == name.startswith("sharded")
        content = read_folder(last) if last.is_dir() else torch.load(last, weights_only=False)
        assert all("lora_" in name for name in content["state_dict"]) == (adapter == "LoRA")
        alone = tmp_path / f"alone-{kind}-{adapter}"
        if not alone.exists():
            fit(config(root, kind, adapter), alone)
        go_on(config(root, kind, adapter), tmp_path / name)
        assert_same(alone, tmp_path / name)
    fit(config(root, "sft", "full", steps=10), tmp_path / "back")
    assert in_ranks(2, go_on, config(root, "sft", "full", strategy="fsdp"), tmp_path / "back") == [0, 0]
    assert_same(tmp_path / "alone-sft-full", tmp_path / "back")


def in_parts(jobs: list[tuple[dict[str, Any], dict[str, Any], Path]]) -> None:
    """Each fit up to a checkpoint, and from there to its end."""
    for start, rest, place in jobs:
        fit(start, place)
        go_on(rest, place)


def test_a_base_in_4_bits_trains_goes_on_and_is_exported(root: Path, tmp_path: Path) -> None:
    """The losses of two processes are those of one, as far as bfloat16 goes; ddp and fsdp."""
    cases = [(kind, name) for kind in KINDS for name in ("ddp", "fsdp")]
    four = partial(config, root, adapter="QLoRA", dtype="bfloat16")
    jobs = [(four(kind, steps=3, strategy=name), four(kind, steps=6, strategy=name), tmp_path / f"{kind}-{name}") for kind, name in cases]
    for start, rest, _ in jobs:
        for settings in (start, rest):
            settings["trainer"]["callbacks"][0]["init_args"]["every_n_steps"] = 3
    assert in_ranks(2, in_parts, jobs) == [0, 0]
    for kind in KINDS:
        alone = tmp_path / kind
        fit(four(kind, steps=6), alone)
        for name in ("ddp", "fsdp"):
            place = tmp_path / f"{kind}-{name}"
            assert [loss for loss, _ in trace(place)] == pytest.approx([loss for loss, _ in trace(alone)], rel=2e-2)
            assert weights(place).keys() == weights(alone).keys()
            assert all(weight.any() for weight in weights(place).values())
    done = export(tmp_path / "contrastive-fsdp" / "model", tmp_path / "exported", "sentence-transformers")
    assert done["cosine"] > 0.999


def test_what_spread_weights_cannot_do_is_refused(root: Path) -> None:
    backbone = Backbone(str(root / "base"))
    with pytest.raises(UsageError, match="adapter.storage is bfloat16 and backbone.dtype float32; set both to bfloat16, or take ddp"):
        SFTModule(backbone, QLoRA()).refuse_spread()
    with pytest.raises(UsageError, match="reference is precomputed.*set it to copy"):
        DPOModule(backbone, reference="precomputed").refuse_spread()
    with pytest.raises(UsageError, match="Linear has no list of layers; use ddp"):
        layers(torch.nn.Linear(2, 2))
    with pytest.raises(UsageError, match="is no whole sharded checkpoint"):
        read_folder(root)
