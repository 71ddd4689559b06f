"""The whole loop, end to end and offline: all stages, nothing redone, nothing asked twice, the same ids after kills."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speedlit.files import read_json, read_jsonl
from speedlit.pipeline.configure import parse
from speedlit.planning.plan import plan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STAGES = [
    "topics",
    "tasks",
    "seed",
    "junior",
    "candidates",
    "preferences",
    "senior",
    "revisions",
    "revisor",
    "synthesis",
    "refinement",
    "dataset",
    "embedder",
    "evaluation",
    "report",
]


def command(root: Path, *words: str, config: str = "smoke") -> list[str]:
    return [sys.executable, "-m", "speedlit", "run", "--config", config, "--root", str(root), *words]


def environment() -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI_")}
    return {**env, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(root, *words), capture_output=True, text=True, timeout=600, env=environment())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loop") / "root"
    done = run(root)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "record quality" in done.stdout
    return root


def ids(root: Path, name: str) -> list[str]:
    return [row["id"] for row in read_jsonl(root / "stages" / name)]


def test_all_stages_finish_and_count(finished: Path) -> None:
    summary = read_json(finished / "summary.json")
    assert list(summary["stages"]) == sorted(STAGES) or set(summary["stages"]) == set(STAGES)
    assert summary["stages"]["seed"]["accepted"] > 200
    assert summary["stages"]["seed"]["calls"] >= 300
    quality = summary["quality"]
    assert quality["prompts"] == 40
    assert {"junior", "senior", "control", "refined"} <= set(quality["sources"])
    assert all(d["verdict"] for d in quality["differences"][0].values() if isinstance(d, dict))
    assert {"untrained", "embedder"} <= set(summary["embedders"]["models"])
    html = (finished / "report.html").read_text()
    assert "<table>" in html
    assert "http" not in html.replace("http-equiv", "")


def test_the_plan_foretold_what_the_run_took(finished: Path) -> None:
    costs, found = read_json(finished / "summary.json")["costs"], plan(parse("smoke"))
    assert 0.9 * found["total"]["calls"] <= costs["total"]["calls"] <= found["total"]["calls"], "prompts with one valid candidate are not judged"
    generated = sum(stage["generated"] for stage in read_json(finished / "summary.json")["stages"].values())
    assert 0.8 * found["total"]["generated"] <= generated <= found["total"]["generated"], "invalid records are not refined"
    assert costs["other"]["calls"] == 0, "a run without trouble pays for nothing but its answers"
    assert costs["total"]["per_accepted"]["calls"] == pytest.approx(costs["total"]["calls"] / costs["accepted"])


def test_held_out_cells_are_in_no_training_record(finished: Path) -> None:
    prompts = {row["id"]: row for row in read_jsonl(finished / "stages/02-tasks/prompts.jsonl")}
    held = {p["group"] for p in prompts.values() if p["use"] == "test"}
    trained = {p["group"] for p in prompts.values() if p["use"] in ("seed", "root", "synthetic")}
    assert held
    assert not held & trained
    seeds = {row["prompt_id"] for row in read_jsonl(finished / "stages/03-seed/records.jsonl")}
    assert all(prompts[i]["use"] == "seed" for i in seeds)
    sources = [row for path in (finished / "stages/12-dataset").glob("triplets-*.jsonl") for row in read_jsonl(path)]
    assert sources
    assert not {prompts[row["lineage"]["prompt"]]["group"] for row in sources} & held


def test_a_second_run_redoes_nothing(finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (finished / "stages").rglob("*") if p.is_file()}
    again = run(finished)
    assert again.returncode == 0
    assert again.stderr.count("already done") == len(STAGES)
    assert {p: p.stat().st_mtime_ns for p in (finished / "stages").rglob("*") if p.is_file()} == before


def test_deleting_a_stage_redoes_it_and_its_dependents(finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(finished, root)
    shutil.rmtree(root / "stages/14-evaluation")
    done = run(root)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("already done") == len(STAGES) - 2
    assert read_json(root / "summary.json")["quality"] == read_json(finished / "summary.json")["quality"]


def test_a_stage_made_anew_asks_the_teacher_nothing(finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(finished, root)
    shutil.rmtree(root / "stages/03-seed")
    done = run(root, "--until", "seed")
    assert done.returncode == 0, done.stderr[-2000:]
    ledger = read_json(root / "stages/03-seed/manifest.json")["ledger"]
    assert ledger["calls"] == ledger["cached"] >= 300
    assert ids(root, "03-seed/records.jsonl") == ids(finished, "03-seed/records.jsonl")


def test_kill_9_anywhere_then_the_same_records(finished: Path, tmp_path: Path) -> None:
    """Killed at random moments, the run ends with the uninterrupted run's record ids and redoes no finished stage."""
    root, rng = tmp_path / "root", random.Random(time.time_ns())
    killed = 0
    for _ in range(4):
        process = subprocess.Popen(
            command(root, "--until", "preferences"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment(), start_new_session=True
        )
        try:
            process.wait(rng.uniform(1, 15))
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            killed += 1
    done_before = {p.parent.name for p in (root / "stages").glob("*/_SUCCESS")}
    last = run(root, "--until", "preferences")
    assert last.returncode == 0, last.stderr[-2000:]
    assert killed
    assert last.stderr.count("already done") >= len(done_before)
    for name in ("03-seed/records.jsonl", "05-candidates/records.jsonl", "06-preferences/preferences.jsonl"):
        assert ids(root, name) == ids(finished, name), name


def test_topics_of_ones_own_are_cut_to_depth_four(tmp_path: Path) -> None:
    topics = Path(__file__).parent / "data" / "topics.txt"
    root = tmp_path / "root"
    few = ["--counts.seed", "12", "--counts.root", "6", "--counts.synthesis", "6", "--counts.test", "0", "--tasks.test", "0", "--tasks.validation", "0"]
    done = run(root, "--topics", str(topics), "--until", "tasks", *few)
    assert done.returncode == 0, done.stderr[-2000:]
    paths = [row["path"] for row in read_jsonl(root / "stages/01-topics/topics.jsonl")]
    assert "Arts/Movies/36_Hours_-_1964/Cast_and_Crew" in paths
    assert any(read_jsonl(root / "stages/02-tasks/prompts.jsonl"))


def test_another_config_may_not_use_the_root(finished: Path) -> None:
    refused = run(finished, "--seed", "9")
    assert refused.returncode == 2
    assert "belongs to another config" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert json.loads((finished / "run.json").read_text())["identity"]["seed"] == 0
