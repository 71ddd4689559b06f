"""Matrices split over the processes of a group: losses of 20 steps and the weights at the end are those of one process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch.nn.functional import dropout

from speedlit.errors import UsageError
from speedlit.evaluation.folders import module_encoder, open_encoder
from speedlit.models.adapter import QLoRA
from speedlit.models.backbone import Backbone
from speedlit.models.splitting import CutDropout, refuse
from speedlit.modules.sft import SFTModule
from speedlit.shares import nearest
from speedlit.strategies import FSDP
from tests.helpers import tiny_bert, tiny_mistral, tiny_qwen3
from tests.modules.recipes import KINDS, in_ranks
from tests.modules.test_strategies import (  # noqa: F401 - root is a fixture
    FEW,
    STEPS,
    Job,
    all_of,
    assert_same,
    assert_unpacked,
    config,
    fit,
    go_on,
    root,
    trace,
    weights,
)

TWO = {"name": "fsdp", "tensor_parallel_size": 2}
TEXTS = ["a b c", "d", "e f g h"]


class Vectors(L.Callback):
    """What the live module makes of some texts at the end, on every rank."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One file of a rank."""
        encoder = module_encoder(pl_module, token_budget=4)  # a forward pass for each text, so that groups have some and one is idle
        np.save(Path(trainer.default_root_dir) / f"vectors.{trainer.global_rank}.npy", encoder.vectors(TEXTS))


def case(root: Path, kind: str, adapter: str, strategy: Any = None, **over: Any) -> dict[str, Any]:  # noqa: F811
    """A fit as in the other strategies' tests; LoRA has dropout, whose numbers have to be those of one process, too."""
    settings = config(root, kind, adapter, strategy=strategy, **over)
    if adapter == "LoRA":
        settings["model"]["init_args"]["adapter"]["init_args"]["dropout"] = 0.1
    if kind == "contrastive":
        settings["data"]["init_args"]["micro_batch"] = 8  # fewer passes, which is what takes the time
    return settings


def few(root: Path, name: str, strategy: Any = None) -> dict[str, Any]:  # noqa: F811
    """Some steps of packed rows under a sliding window, of pairs that share their prompt, or in bfloat16."""
    if name == "pairs":
        settings = config(root, "preference", "LoRA", FEW, strategy)
        settings["data"]["init_args"]["share_prefix"] = True
        return settings
    settings = config(root, "sft", "full", FEW, strategy, name=str(root / "mistral"))
    settings["data"]["init_args"]["pack"] = name == "packed"
    settings["trainer"]["precision"] = "bf16-mixed" if name == "narrow" else "32-true"
    return settings


def all_and_on(jobs: list[Job], rests: list[Job]) -> None:
    all_of(jobs)
    for settings, place in rests:
        go_on(settings, place)


def test_two_processes_that_share_each_matrix_give_what_one_gives(root: Path, tmp_path: Path) -> None:  # noqa: F811
    """One of the six goes from one process to two and the other way round, in the middle."""
    cases = [(kind, adapter) for kind in KINDS for adapter in ("full", "LoRA")]
    split = {which: tmp_path / "-".join((*which, "split")) for which in cases}
    first, back = cases[0], tmp_path / "back"
    jobs = [(case(root, *which, TWO, steps=10 if which == first else STEPS), place) for which, place in split.items()]
    fit(case(root, *first, steps=10), back)
    tiny_mistral(root / "mistral")
    names = ("packed", "pairs", "narrow")
    jobs += [(few(root, name, TWO), tmp_path / name) for name in names]
    assert in_ranks(2, all_and_on, jobs, [(case(root, *first, TWO), back)]) == [0, 0]
    go_on(case(root, *first), split[first])
    for which, place in split.items():
        alone = tmp_path / "-".join((*which, "single"))
        fit(case(root, *which), alone)
        assert trace(alone)[0] != pytest.approx(trace(alone)[-1], rel=1e-3)
        assert_same(alone, place)
        assert_unpacked(place)
    assert_same(tmp_path / "-".join((*first, "single")), back)
    for name in names:
        fit(few(root, name), tmp_path / f"{name}-single")
        ours, theirs = ([loss for loss, _ in trace(place)] for place in (tmp_path / name, tmp_path / f"{name}-single"))
        assert ours == pytest.approx(theirs, rel=2e-3 if name == "narrow" else 1e-5)


def in_groups(root: Path, devices: int) -> dict[str, Any]:  # noqa: F811
    """Norms within the heads, all ranks' documents and a learned temperature."""
    settings = config(root, "contrastive", "full", FEW, TWO if devices > 1 else None, name=str(root / "qwen3"))
    settings["trainer"] |= {"devices": devices, "callbacks": [{"class_path": "tests.modules.test_splitting.Vectors"}]}
    return settings


def test_four_processes_in_two_groups(root: Path, tmp_path: Path) -> None:  # noqa: F811
    tiny_qwen3(root / "qwen3")
    place, alone = tmp_path / "four", tmp_path / "alone"
    assert in_ranks(4, fit, in_groups(root, 4), place) == [0] * 4
    fit(in_groups(root, 1), alone)
    for ours, theirs in zip(trace(place), trace(alone), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5, rel=1e-5)
    assert all(torch.allclose(weight, weights(alone)[name], atol=1e-5, rtol=0) for name, weight in weights(place).items())
    found = [np.load(place / f"vectors.{rank}.npy") for rank in range(4)]
    assert all(np.array_equal(found[0], other) for other in found)
    assert np.allclose(found[0], open_encoder(place / "model").vectors(TEXTS), atol=1e-5)


def test_parts_of_a_dropout_are_those_of_the_whole() -> None:
    whole = torch.rand(3, 5, 8)
    torch.manual_seed(1)
    expected = dropout(whole, 0.5)
    found = []
    for number in (0, 1):
        torch.manual_seed(1)
        found.append(CutDropout(0.5, number, 2)(whole.chunk(2, -1)[number]))
    assert torch.equal(torch.cat(found, -1), expected)
    assert torch.equal(CutDropout(0.5, 0, 2).eval()(whole), whole)


def test_what_cannot_be_split_is_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    sizes = {"model_type": "llama", "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336}
    refuse(SimpleNamespace(**sizes), 8, 16)
    with pytest.raises(UsageError, match=r"size is 16, by which the model's num_key_value_heads \(8\) can't be divided; the nearest that works is 8"):
        refuse(SimpleNamespace(**sizes), 16, 16)
    with pytest.raises(UsageError, match=r"num_attention_heads \(14\) can't be divided; the nearest that works is 2"):
        refuse(SimpleNamespace(**{**sizes, "num_attention_heads": 14}), 4, 8)
    with pytest.raises(UsageError, match="only matrices of llama, mistral, qwen2 and qwen3 models are split, and this is bert; set it to 1"):
        refuse(Backbone(str(tiny_bert(tmp_path / "bert"))).build(False).config, 2, 2)
    assert (nearest(3, 8), nearest(5, 24, 36), nearest(7, 13)) == (2, 4, 1)
    module = SFTModule(Backbone(str(root / "base")), QLoRA())
    monkeypatch.setattr(SFTModule, "together", 2)
    with pytest.raises(UsageError, match="tensor_parallel_size is 2, but a matrix in 4 bits can't be split; set it to 1, or take LoRA"):
        module.refuse_spread()
    uneven = FSDP(tensor_parallel_size=4)
    uneven.parallel_devices = [torch.device("cpu")] * 6
    with pytest.raises(UsageError, match="size is 4, but 6 processes don't fall into groups of 4; set it to 3"):
        uneven.setup_environment()
