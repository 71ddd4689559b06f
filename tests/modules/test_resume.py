"""kill -9 at any moment, the same command again: metrics.csv and the final weights are those of an uninterrupted run, bit for bit."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from speedlit.pipeline.fitting import fit
from tests.modules.recipes import KINDS, in_child, prepare, recipe

# One run is killed again and again: before a save, after it, at an epoch's end, in the middle of accumulation, before the last save.
KILLS: dict[int, list[dict[str, Any]]] = {
    0: [{"after_step": 2, "before_save": True}, {"after_step": 3}, {"after_step": 4}, {"after_backward": 3}, {"after_step": 8, "before_save": True}],
    2: [{"after_step": 3}, {"after_backward": 4}],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("fits"))


@pytest.fixture(scope="module")
def straight(root: Path) -> dict[str, Path]:
    """Uninterrupted fits of the three modules."""
    places = {}
    for kind in KINDS:
        places[kind] = root / f"straight-{kind}"
        assert in_child(fit, with_callbacks(recipe(root, kind), None), places[kind], progress=False) == 0
    return places


def with_callbacks(config: dict[str, Any], killer: dict[str, Any] | None) -> dict[str, Any]:
    callbacks = [{"class_path": "tests.modules.killer.Killer", "init_args": killer or {}}, {"class_path": "Resume", "init_args": {"every_n_steps": 1}}]
    return {**config, "trainer": {**config["trainer"], "callbacks": callbacks}}


def outcome(place: Path) -> tuple[str, dict[int, Any], dict[str, bytes]]:
    """Loss trace, the samples of each step (as last trained on), final weights."""
    samples = dict(map(json.loads, (place / "samples.jsonl").read_text().splitlines()))
    return (place / "metrics.csv").read_text(), samples, {p.name: p.read_bytes() for p in (place / "model").glob("*.safetensors")}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_fits_go_on_bit_for_bit(root: Path, straight: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, workers: int) -> None:
    monkeypatch.setattr("speedlit.pipeline.fitting._identity", lambda config: "the killer is not part of the recipe")
    expected = outcome(straight[kind])
    assert len(expected[0].splitlines()) == 9  # eight steps
    config = recipe(root, kind, data={"workers": workers})
    for kill in KILLS[workers]:
        assert in_child(fit, with_callbacks(config, kill), tmp_path, progress=False) == -9, kill
        assert not (tmp_path / "fit.json").exists()
    assert in_child(fit, with_callbacks(config, None), tmp_path, progress=False) == 0
    assert outcome(tmp_path) == expected


def kills(seed: int, micro: int) -> list[dict[str, Any]]:
    """Random moments in a run that ends in the second of its epochs of 4 steps: before or after a save, or at any backward pass; and the very end."""
    draw, done, out = random.Random(seed), 0, []
    while len(out) < 3:
        if draw.random() < 0.5:
            passes = draw.randint(1, micro * min(3, 6 - done))
            out.append({"after_backward": passes})
            done += (passes - 1) // micro
        else:
            step, before = min(done + draw.randint(1, 3), 5), draw.random() < 0.5 and done < 5
            out.append({"after_step": step, "before_save": before})
            done = max(done, step - before)
    return [*out, {"after_step": 6, "before_save": True}]


@pytest.mark.parametrize("kind", KINDS)
def test_random_kills_and_other_worker_counts_change_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Each attempt has another number of loader workers. DPO reads log-probs that an attempt which was killed has precomputed."""
    monkeypatch.setattr("speedlit.pipeline.fitting._identity", lambda config: "neither killer nor workers are part of the recipe")

    def six_steps(workers: int) -> dict[str, Any]:
        model = {"reference": "precomputed"} if kind == "preference" else {}
        return recipe(root, kind, model=model, data={"workers": workers}, trainer={"max_epochs": None, "max_steps": 6})

    assert in_child(fit, with_callbacks(six_steps(0), None), tmp_path / "straight", progress=False) == 0
    for table in (root / kind).glob("reference-*"):
        table.unlink()
    plan = kills(seed=5 + KINDS.index(kind), micro=1 if kind == "contrastive" else 2)
    for number, kill in enumerate([*plan, None]):
        config = with_callbacks(six_steps((number + 1) % 3), kill)
        assert in_child(fit, config, tmp_path / "killed", progress=False) == (-9 if kill else 0), (number, kill)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "straight")


def test_a_killed_full_fit_with_precomputed_reference_goes_on(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All weights are trained, so the start model is no longer there after a resume unless it is built again."""
    monkeypatch.setattr("speedlit.pipeline.fitting._identity", lambda config: "the killer is not part of the recipe")
    for reference in ("precomputed", "copy"):
        config = recipe(root, "preference", lora=False, model={"reference": reference})
        assert in_child(fit, with_callbacks(config, None), tmp_path / reference, progress=False) == 0
        killed = tmp_path / f"{reference}-killed"
        assert in_child(fit, with_callbacks(config, {"after_step": 5}), killed, progress=False) == -9
        assert in_child(fit, with_callbacks(config, None), killed, progress=False) == 0
        assert outcome(killed) == outcome(tmp_path / reference)


def test_more_epochs_after_an_end_go_on_in_the_same_order(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch, then the same with two: the second epoch is that of a run of two (constant rate, as a schedule depends on its end)."""
    monkeypatch.setattr("speedlit.pipeline.fitting._identity", lambda config: str(config["trainer"]["max_epochs"]))
    monkeypatch.setattr("speedlit.pipeline.fitting.remove", lambda path: None)
    config = with_callbacks(recipe(root, "sft", model={"schedule": {"kind": "constant"}}), None)
    assert in_child(fit, config, tmp_path / "two", progress=False) == 0
    one = {**config, "trainer": {**config["trainer"], "max_epochs": 1}}
    assert in_child(fit, one, tmp_path / "grown", progress=False) == 0
    assert in_child(fit, config, tmp_path / "grown", progress=False) == 0
    assert outcome(tmp_path / "grown") == outcome(tmp_path / "two")


def test_a_finished_fit_is_not_done_again_and_other_data_start_anew(root: Path, tmp_path: Path) -> None:
    from speedlit.data.shards import write_shards
    from tests.helpers import sft_rows

    place, shards = tmp_path / "fit", tmp_path / "shards"
    write_shards(sft_rows(20), shards, "sft")
    config = recipe(root, "sft", data={"shards": str(shards)}, trainer={"max_epochs": 1})
    first = fit(config, place, progress=False)
    stamp = (place / "model" / "adapter_model.safetensors").stat().st_mtime_ns
    assert fit({**config, "threads": 1}, place, progress=False) == first
    assert (place / "model" / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    write_shards(sft_rows(28), shards, "sft")
    again = fit(config, place, progress=False)
    assert again["steps"] == 4 != first["steps"]
    assert len((place / "metrics.csv").read_text().splitlines()) == 5


def test_another_start_model_begins_anew(root: Path, tmp_path: Path) -> None:
    from tests.helpers import tiny_llama

    tiny_llama(tmp_path / "base", seed=1)
    config = recipe(root, "sft", model={"backbone": {"name": str(tmp_path / "base")}}, trainer={"max_epochs": 1})
    first = fit(config, tmp_path / "fit", progress=False)
    tiny_llama(tmp_path / "base", seed=2)
    assert fit(config, tmp_path / "fit", progress=False)["final"]["loss"] != first["final"]["loss"]


def test_a_damaged_checkpoint_is_named(root: Path, tmp_path: Path) -> None:
    from speedlit.errors import UsageError

    config = recipe(root, "sft", trainer={"max_epochs": 1})
    fit(config, tmp_path, progress=False)
    (tmp_path / "fit.json").unlink()
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"last\.ckpt is damaged"):
        fit(config, tmp_path, progress=False)


def test_a_checkpoint_of_other_data_is_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from speedlit.errors import UsageError

    monkeypatch.setattr("speedlit.pipeline.fitting._identity", lambda config: "same")
    fit(recipe(root, "sft", trainer={"max_epochs": 1}), tmp_path, progress=False)
    (tmp_path / "fit.json").unlink()
    with pytest.raises(UsageError, match="steps per epoch"):
        fit(recipe(root, "sft", data={"batch_size": 5}), tmp_path, progress=False)
    with pytest.raises(UsageError, match="token contract"):
        fit(recipe(root, "sft", model={"tokens": {"max_length": 99}}), tmp_path, progress=False)
