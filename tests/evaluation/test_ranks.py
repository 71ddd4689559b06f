"""Two processes score and encode as one does: same vectors, same scores, files once, and no rank waits for one that has failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speedlit.errors import SpeedlitError, UsageError
from speedlit.evaluation import ranks
from speedlit.evaluation.run import evaluate
from speedlit.evaluation.tasks import load_tasks
from tests.evaluation.conftest import bag_of_words
from tests.helpers import sentence
from tests.modules.recipes import in_ranks

TEXTS = [sentence(i, 1 + i % 9) for i in range(37)] + ["cat red", "dog"]


def encode_all(out: Path, budget: int, texts: list[str]) -> None:
    """Vectors of this rank, and how often it went through the model."""
    encoder, inner, calls = bag_of_words(token_budget=budget), None, []
    inner = encoder.embed
    encoder.embed = lambda ids, mask: calls.append(len(ids)) or inner(ids, mask)
    with ranks.joined("cpu"):
        np.save(out / f"{ranks.number()}.npy", encoder.vectors(texts))
        (out / f"{ranks.number()}.json").write_text(json.dumps(len(calls)))


@pytest.mark.parametrize(("budget", "texts"), [(20, TEXTS), (100_000, TEXTS)])  # several batches and an odd one; fewer batches than ranks
def test_every_rank_gets_the_vectors_that_one_process_computes(tmp_path: Path, budget: int, texts: list[str]) -> None:
    alone = bag_of_words(token_budget=budget).vectors(texts)
    assert in_ranks(2, encode_all, tmp_path, budget, texts) == [0, 0]
    assert all(np.array_equal(np.load(tmp_path / f"{rank}.npy"), alone) for rank in (0, 1))
    counts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert counts[0] == counts[1]  # sharded weights are gathered in step


def score_all(sets: Path, out: Path) -> None:
    """Scores of this rank, twice: the second time from the files."""
    with ranks.joined("cpu"):
        encoder = bag_of_words()
        found = evaluate(encoder, load_tasks("Ret,Cls,Sts", sets), output=out / "results")
        encoder.embed = None  # type: ignore[assignment] # never called again
        assert evaluate(encoder, load_tasks("Ret,Cls,Sts", sets), output=out / "results") == pytest.approx(found, abs=1e-6)
        (out / f"{ranks.number()}.json").write_text(json.dumps(found))


def test_scores_are_those_of_one_process_and_each_task_has_one_file(sets: Path, tmp_path: Path) -> None:
    alone = evaluate(bag_of_words(), load_tasks("Ret,Cls,Sts", sets))
    assert in_ranks(2, score_all, sets, tmp_path) == [0, 0]
    assert json.loads((tmp_path / "0.json").read_text()) == json.loads((tmp_path / "1.json").read_text()) == alone
    assert len(list((tmp_path / "results").rglob("Ret.json"))) == 1


def fail_on_one(sets: Path, out: Path) -> None:
    """The second rank cannot compute; both say so and go on."""
    with ranks.joined("cpu"):
        encoder, failures = bag_of_words(token_budget=8), {}
        working = encoder.embed
        if ranks.number() == 1:
            encoder.embed = lambda ids, mask: 1 / 0  # type: ignore[assignment,return-value]
        assert evaluate(encoder, load_tasks("Ret", sets), failed=failures.__setitem__) == {}
        assert "division by zero" in failures["Ret"]
        with pytest.raises((SpeedlitError, ZeroDivisionError)):
            encoder.vectors(TEXTS)
        encoder.embed = working
        assert encoder.vectors(TEXTS).shape[0] == len(TEXTS)
        (out / f"{ranks.number()}.ok").write_text("")


def test_a_rank_that_fails_leaves_no_other_waiting(sets: Path, tmp_path: Path) -> None:
    assert in_ranks(2, fail_on_one, sets, tmp_path) == [0, 0]
    assert (tmp_path / "0.ok").is_file() and (tmp_path / "1.ok").is_file()


def test_several_processes_on_one_named_gpu_are_refused(monkeypatch: Any) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "t", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="2 processes on one GPU"), ranks.joined("cuda:0"):
        pass
