"""Passes side by side: results in order, as if one came after the other."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from speedlit.data.collate import pad_ids
from speedlit.evaluation.folders import open_encoder
from speedlit.models import threads
from speedlit.models.threads import passes, side_by_side
from speedlit.pipeline.fitting import fit
from tests.helpers import tiny_bert
from tests.modules.recipes import prepare, recipe


@pytest.fixture
def two() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_and_settings_go_along(two: None) -> None:
    seen: list[str] = []

    def job(number: int) -> tuple[int, bool, bool, int, int]:
        seen.append(threading.current_thread().name)
        time.sleep(0.03 * (3 - number % 3))
        return number, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_num_threads(), threads.lanes()

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = list(side_by_side([partial(job, number) for number in range(7)]))
    assert found == [(number, False, True, 1, 1) for number in range(7)]
    assert len(set(seen)) == 2
    assert torch.get_num_threads() == 2
    begun: list[int] = []
    thread = threading.Thread(target=lambda: begun.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert begun == [2]


def test_an_error_ends_it(two: None) -> None:
    done: list[int] = []

    def job(number: int) -> int:
        if number == 1:
            raise ValueError("the second")
        time.sleep(0.05)
        done.append(number)
        return number

    with pytest.raises(ValueError, match="the second"):
        list(side_by_side([partial(job, number) for number in range(20)]))
    assert len(done) < 6
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("again", [0, 3, 5])
def test_gradients_of_chunks(two: None, again: int) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    other = copy.deepcopy(network)
    chunks = [(torch.randn(rows, 8),) for rows in (5, 4, 3, 2, 1)]
    found = torch.cat(passes(network, chunks, again, list(network.parameters())))
    expected = torch.cat([other(*chunk) for chunk in chunks])
    for vectors in (found, expected):
        (vectors @ vectors.T).logsumexp(1).sum().backward()
    assert torch.equal(found, expected)
    assert all(torch.allclose(one.grad, two.grad, atol=1e-6) for one, two in zip(network.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["sft", "preference", "contrastive"])
def test_a_fit_is_the_same_with_one_thread_and_two(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, two: None) -> None:
    """Every bit: each pass is computed by one thread, and gradients are added in the order of the passes."""
    root, weights, used = prepare(tmp_path), [], []

    def watched(jobs: Any) -> Any:
        used.append(threads.lanes())
        return side_by_side(jobs)

    for module in ("speedlit.modules.base", "speedlit.modules.dpo", "speedlit.models.threads"):
        monkeypatch.setattr(f"{module}.side_by_side", watched)
    for number in (1, 2):
        torch.set_num_threads(number)
        model = {"adapter": {"class_path": "LoRA", "init_args": {"r": 4}}, **({"recompute": True} if kind == "contrastive" else {})}
        fit(recipe(root, kind, model=model, trainer={"precision": "bf16-mixed"}), tmp_path / str(number), progress=False)
        weights.append(torch.load(tmp_path / str(number) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
        assert bool(used) == (number == 2)
    assert (tmp_path / "1" / "metrics.csv").read_text() == (tmp_path / "2" / "metrics.csv").read_text()
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_vectors_are_those_of_one_thread(tmp_path: Path, two: None) -> None:
    texts = [f"text {number} " + "word " * (number % 9) for number in range(60)]
    encoder = open_encoder(tiny_bert(tmp_path / "bert"), pooling="mean", token_budget=64)
    assert encoder.side_by_side
    found = encoder.vectors(texts)
    torch.set_num_threads(1)
    assert (found == encoder.vectors(texts)).all()
    ids, mask = pad_ids(encoder.tokens.encode_texts(encoder.tokenizer, texts[:3], [None] * 3), 0)
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found[:3]), encoder.embed(ids, mask), atol=1e-5)
