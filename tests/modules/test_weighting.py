"""The loss of a step is the mean over its target tokens (pairs) however the step is cut: gradients are equal to 1e-6 in fp32, lengths uneven."""

from __future__ import annotations

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from speedlit.data.shards import write_shards
from speedlit.errors import SpeedlitError, UsageError
from speedlit.pipeline.fitting import fit
from tests.helpers import sentence
from tests.modules.recipes import prepare, recipe

KINDS = ("sft", "preference")
ROWS = {"sft": "pack", "preference": "share_prefix"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("weighting"))


def one_step(root: Path, kind: str, data: dict[str, Any], trainer: dict[str, Any] | None = None) -> dict[str, Any]:
    """One step of 8 samples over all weights; DPO at a margin that isn't 0, as the loss is IPO."""
    model = {"adapter": None, "clip": None, "schedule": {"kind": "constant"}, **({"loss": "ipo", "beta": 0.5} if kind == "preference" else {})}
    callbacks = [{"class_path": "tests.modules.keeper.Keeper"}]
    settings = {"max_epochs": None, "max_steps": 1, "callbacks": callbacks, **(trainer or {})}
    return recipe(root, kind, lora=False, model=model, data={ROWS[kind]: False, **data}, trainer=settings)


def kept(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(place / "gradients.pt")
    return found


def assert_same(one: Path, two: Path) -> None:
    ours, theirs = kept(one)["gradients"], kept(two)["gradients"]
    assert ours.keys() == theirs.keys()
    assert max(float(g.abs().max()) for g in ours.values()) > 1e-2
    for name, gradient in ours.items():
        assert torch.allclose(theirs[name], gradient, atol=1e-6, rtol=1e-6), name


@pytest.fixture(scope="module")
def whole(root: Path) -> dict[str, Path]:
    """World 1, one micro-batch."""
    for kind in KINDS:
        fit(one_step(root, kind, {"micro_batch": None}), root / f"whole-{kind}", progress=False)
        assert kept(root / f"whole-{kind}")["micro"] == 1
    return {kind: root / f"whole-{kind}" for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_does_not_change_the_gradients(root: Path, whole: dict[str, Path], tmp_path: Path, kind: str) -> None:
    fit(one_step(root, kind, {"micro_batch": 2}), tmp_path, progress=False)
    assert kept(tmp_path)["micro"] == 4
    assert_same(whole[kind], tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_several_sequences_do_not_change_the_gradients(root: Path, whole: dict[str, Path], tmp_path: Path, kind: str) -> None:
    fit(one_step(root, kind, {"micro_batch": 2, ROWS[kind]: True}), tmp_path, progress=False)
    assert kept(tmp_path)["several"]
    assert_same(whole[kind], tmp_path)


def test_pairs_share_a_row_where_it_pays_and_can(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``auto`` goes by the data; a model that takes no dense mask gets separate rows and a line that says so, but ``true`` is refused."""
    for name, length in (("long", 30), ("short", 2)):
        rows = [{"id": f"{i}", "prompt": sentence(i, length), "chosen": " " + sentence(i, 9), "rejected": " " + sentence(i + 7, 9)} for i in range(8)]
        write_shards(rows, tmp_path / name, "preference")
    config = one_step(root, "preference", {"share_prefix": "auto", "shards": str(tmp_path / "long")})
    fit(config, tmp_path / "pays", progress=False)
    fit(one_step(root, "preference", {"share_prefix": "auto", "shards": str(tmp_path / "short")}), tmp_path / "loses", progress=False)
    assert (kept(tmp_path / "pays")["several"], kept(tmp_path / "loses")["several"]) == (True, False)
    monkeypatch.setattr("speedlit.models.masks.OBEYING", ("eager",))
    capsys.readouterr()
    fit(config, tmp_path / "apart", progress=False)
    assert not kept(tmp_path / "apart")["several"]
    assert "pairs have separate rows: sdpa attention takes no dense mask" in capsys.readouterr().err
    assert_same(tmp_path / "pays", tmp_path / "apart")
    config["data"]["init_args"]["share_prefix"] = True
    with pytest.raises(SpeedlitError, match="takes no dense mask.*set data.pack and data.share_prefix to false"):
        fit(config, tmp_path / "refused", progress=False)
    with pytest.raises(UsageError, match="share_prefix is sometimes; expected"):
        fit(one_step(root, "preference", {"share_prefix": "sometimes"}), tmp_path / "wrong", progress=False)


def rank(number: int, port: int, jobs: list[tuple[dict[str, Any], Path]]) -> None:
    """One process of a torchrun-like pair; it does the fits one after the other."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", GROUP_RANK="0", NODE_RANK="0",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test",
    )  # fmt: skip
    for config, place in jobs:
        fit(config, place, progress=False)


def test_two_ranks_with_accumulation_have_the_gradients_of_one(root: Path, whole: dict[str, Path], tmp_path: Path) -> None:
    jobs = [(one_step(root, kind, {"micro_batch": 2}, {"devices": 2, "strategy": "ddp"}), tmp_path / kind) for kind in KINDS]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=rank, args=(number, port, jobs)) for number in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(200)
        if process.exitcode is None:
            process.kill()
    assert [process.exitcode for process in ranks] == [0, 0]
    for kind in KINDS:
        assert kept(tmp_path / kind)["micro"] == 2
        assert_same(whole[kind], tmp_path / kind)
