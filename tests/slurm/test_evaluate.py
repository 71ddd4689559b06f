"""The shipped evaluate.sbatch on two nodes: the scores of one process, each task once."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from speedlit.cli import main
from tests.helpers import tiny_bert
from tests.slurm.mini import call, state, wait_for

REPOSITORY = Path(__file__).parents[2]


def similar(folder: Path) -> Path:
    """A set of sentence pairs."""
    (folder / "Sts").mkdir(parents=True)
    rows = [{"sentence1": f"{a} {b} c", "sentence2": f"{b} {a} d", "score": float(i)} for i, (a, b) in enumerate(["ab", "ba", "ac", "ca", "bd", "db", "cd"])]
    (folder / "Sts" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tasks.json").write_text(json.dumps([{"folder": "Sts", "type": "STS"}]))
    return folder


def scores(folder: Path) -> list[float]:
    return [json.loads(path.read_text())["scores"]["test"][0]["main_score"] for path in sorted(folder.rglob("Sts.json"))]


def test_two_nodes_evaluate(slurm: Path, tmp_path: Path) -> None:
    model, sets = tiny_bert(tmp_path / "bert"), similar(tmp_path / "sets")
    words = [str(model), "--data", str(sets), "--pooling", "mean", "--output"]
    assert main(["evaluate", *words, str(tmp_path / "one")]) == 0
    asked = ["--nodes=2", "--ntasks-per-node=1", "--mem=500", f"--output={tmp_path}/job.log", f"--chdir={REPOSITORY}", "scripts/slurm/evaluate.sbatch"]
    own = {"SPEEDLIT": shlex.join([sys.executable, "-m", "speedlit"]), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    job = call("sbatch", "--parsable", *asked, *words, str(tmp_path / "two"), **own)
    wait_for(lambda: state(job) in ("COMPLETED", "FAILED", "CANCELLED", ""), 120, f"job {job} ends", lambda: (tmp_path / "job.log").read_text())
    assert state(job) == "COMPLETED", (tmp_path / "job.log").read_text()
    assert scores(tmp_path / "two") == pytest.approx(scores(tmp_path / "one"), abs=1e-6)
    assert len(scores(tmp_path / "two")) == 1
