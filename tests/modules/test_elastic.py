"""Elastic determinism: a run goes on with another number of processes, micro-batches and loader workers, in the same global batches."""

from __future__ import annotations

import csv
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from speedlit.data.shards import write_shards
from speedlit.pipeline import fitting
from tests.helpers import contrastive_rows, preference_rows, sft_rows, tiny_llama
from tests.modules.recipes import KINDS, in_child, in_ranks, recipe

COUNT = 25  # batches of 8 leave one sample over, fewer than there are ranks; contrastive: 8 and 5, 8 and 4
fit = partial(fitting.fit, progress=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("elastic")
    tiny_llama(place / "base")
    for shape, rows in (("sft", sft_rows(COUNT)), ("preference", preference_rows(COUNT)), ("contrastive", contrastive_rows(COUNT, negatives=1))):
        write_shards(rows, place / shape, shape)
    return place


def config(root: Path, kind: str, names: Path, kill: int | None = None, trainer: dict[str, Any] | None = None, **data: Any) -> dict[str, Any]:
    """A fit of two epochs without dropout; what is drawn for it depends on how rows are laid out in micro-batches."""
    callbacks = [
        {"class_path": "tests.modules.witness.Names", "init_args": {"path": str(names)}},
        {"class_path": "tests.modules.killer.Killer", "init_args": {"after_step": kill}},
        {"class_path": "Resume", "init_args": {"every_n_steps": 1}},
    ]
    adapter = {"class_path": "LoRA", "init_args": {"r": 4}}
    mix = {"shards": [{"path": str(root / kind), "weight": 0.5, "cap": 11}, str(root / kind)], "drop_last": False} if kind == "contrastive" else {}
    model = {"adapter": adapter, "temperature": 0.1} if kind == "contrastive" else {"adapter": adapter}
    return recipe(root, kind, model=model, data={**mix, **data}, trainer={**(trainer or {}), "callbacks": callbacks})


def steps(names: Path) -> dict[int, list[str]]:
    """The samples of each step, over all ranks."""
    found: dict[int, list[str]] = {}
    for path in names.parent.glob(f"{names.name}.*"):
        for line in path.read_text().splitlines():
            number, *own = line.split()
            found.setdefault(int(number), []).extend(own)
    return {number: sorted(own) for number, own in found.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_with_other_processes_micro_batches_and_workers(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(fitting, "_identity", lambda config: "the killer is not part of the recipe")
    assert in_child(fit, config(root, kind, tmp_path / "straight"), tmp_path / "one") == 0
    names = tmp_path / "elastic"
    assert in_child(fit, config(root, kind, names, kill=2), tmp_path / "many") == -9
    two = {"devices": 2, "strategy": "ddp"}
    assert in_ranks(2, fit, config(root, kind, names, kill=5, trainer=two, micro_batch=3), tmp_path / "many") == [-9, -9]
    assert in_child(fit, config(root, kind, names, micro_batch=1, workers=2), tmp_path / "many") == 0
    expected = steps(tmp_path / "straight")
    assert steps(names) == expected
    half = len(expected) // 2
    for epoch in (range(1, half + 1), range(half + 1, 2 * half + 1)):
        counts = Counter(name for step in epoch for name in expected[step])
        assert set(counts.values()) == ({1, 2} if kind == "contrastive" else {1})
        assert sum(counts.values()) == COUNT + (11 if kind == "contrastive" else 0)
    one, many = (list(csv.DictReader((tmp_path / place / "metrics.csv").open())) for place in ("one", "many"))
    assert len(one) == len(many) == len(expected)
    for a, b in zip(one, many, strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), abs=1e-5)
        assert float(a["grad_norm"]) == pytest.approx(float(b["grad_norm"]), rel=1e-4)


def test_what_the_machine_decides_is_not_part_of_a_fit(root: Path) -> None:
    one = recipe(root, "sft")
    two = recipe(root, "sft", data={"micro_batch": 1, "workers": 3}, trainer={"devices": 2, "strategy": "ddp"})
    assert fitting._identity(one) == fitting._identity(two)
    assert fitting._identity(one) != fitting._identity(recipe(root, "sft", data={"batch_size": 4}))
    mixed = [recipe(root, "sft", data={"shards": [{"path": str(root / "sft"), "weight": weight}]}) for weight in (1.0, 0.5)]
    assert fitting._identity(mixed[0]) != fitting._identity(mixed[1])
