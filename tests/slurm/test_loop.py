"""Synthesis over an array, and the loop as a chain of jobs: the records of one process."""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.slurm.mini import call, state, wait_for

REPOSITORY = Path(__file__).parents[2]
COUNTS = {"seed": 120, "root": 20, "candidates": 2, "preferences": 20, "revisions": 20, "synthesis": 20, "test": 20}
pytestmark = pytest.mark.timeout(280)


@pytest.fixture(scope="module")
def config(slurm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke recipe with few records, and a cluster file beside it."""
    place = tmp_path_factory.mktemp("loop")
    recipe = yaml.safe_load((REPOSITORY / "configs" / "smoke.yaml").read_text())
    (place / "cluster.yaml").write_text(yaml.safe_dump({"job": {"memory": "500M", "cpus": 1, "shards": 2}}))
    (place / "few.yaml").write_text(yaml.safe_dump({**recipe, "counts": COUNTS, "cluster": str(place / "cluster.yaml"), "threads": 1}))
    return place / "few.yaml"


def speedlit(*words: object, code: int = 0) -> str:
    """What the command says on both streams."""
    command = [sys.executable, "-m", "speedlit", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, timeout=240)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout + done.stderr


def records(root: Path) -> bytes:
    return (root / "stages" / "03-seed" / "records.jsonl").read_bytes()


@pytest.fixture(scope="module")
def single(config: Path) -> Path:
    root = config.parent / "single"
    speedlit("run", "--config", config, "--root", root, "--until", "seed")
    return root


def test_an_array_of_eight_gives_the_records_of_one_process(config: Path, single: Path) -> None:
    """Each task brings up a server of its own; here, in the place of vLLM, the embedded teacher under the same words."""
    root = config.parent / "array"
    vllm = config.parent / "vllm"
    vllm.write_text(f'#!/bin/bash\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m speedlit teacher serve --port "$6"\n')  # serve MODEL --host H --port P
    vllm.chmod(0o755)
    shutil.copytree(single, root, ignore=shutil.ignore_patterns("03-seed", "journal*"))
    words = ["scripts/slurm/synth.sbatch", "seed", "--config", str(config), "--root", str(root)]
    own = {"SPEEDLIT": shlex.join([sys.executable, "-m", "speedlit"]), "SPEEDLIT_LOGS": str(root / "logs"), "PYTHONPATH": str(REPOSITORY)}
    own |= {"VLLM": str(vllm), "VLLM_MODEL": "embedded"}
    asked = ["sbatch", "--parsable", f"--chdir={REPOSITORY}", "--mem=500"]
    array = call(*asked, "--array=0-7", f"--output={root}/shard-%a.log", *words, **own)
    whole = call(*asked, f"--dependency=afterok:{array}", "--kill-on-invalid-dep=yes", f"--output={root}/whole.log", *words, **own)
    wait_for(lambda: state(whole) in ("COMPLETED", "FAILED", "CANCELLED", ""), 200, "all is put together")
    said = "\n".join(path.read_text() for path in sorted(root.glob("*.log")))
    assert state(whole) == "COMPLETED", said
    assert records(root) == records(single)
    assert len(list(root.glob("shard-*.log"))) == 8
    assert len(list((root / "logs").glob("vllm-*.log"))) == 8
    assert "(120 from the journal)" in (root / "whole.log").read_text(), said


def test_the_loop_as_a_chain_of_jobs(config: Path, single: Path) -> None:
    """Submitted by speed.sh, followed by the command that it stands for."""
    root = config.parent / "chain"
    words = ["run", "--executor", "slurm", "--config", config, "--root", root, "--until", "seed"]
    own = {"SPEEDLIT": shlex.join([sys.executable, "-m", "speedlit"]), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([REPOSITORY / "scripts" / "slurm" / "speed.sh", *words[3:]], capture_output=True, text=True, env={**os.environ, **own}, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("an array of 2 and what puts it together") == 2  # tasks, seed
    assert "seed: in the queue as job" in (said := speedlit(*words)), said
    assert "[ 3/15] seed: done" in said
    assert records(root) == records(single)
    assert "seed: already done" in speedlit(*words)


def test_a_failed_job_is_named_and_its_stage_alone_submitted_again(config: Path, single: Path) -> None:
    root = config.parent / "failing"
    shutil.copytree(single, root, ignore=shutil.ignore_patterns("03-seed", "journal*"))
    words = ["run", "--executor", "slurm", "--config", config, "--root", root, "--until", "seed"]
    said = speedlit(*words, "--teacher.base_url", "http://127.0.0.1:9/v1", "--teacher.retries", 0, "--teacher.patience", 1, code=1)
    assert "seed: job " in said and " failed; its log " in said and "127.0.0.1:9" in said, said
    assert "tasks: already done" in (said := speedlit(*words)), said
    assert records(root) == records(single)


def test_a_stage_that_slurm_wants_to_end_goes_on_in_its_next_attempt(config: Path, single: Path) -> None:
    """USR1, as before a time limit, to the job that puts together; the chain behind it waits for its second attempt."""
    root = config.parent / "signalled"
    shutil.copytree(single, root, ignore=shutil.ignore_patterns("03-seed", "journal*"))
    alone = config.parent / "alone.yaml"
    alone.write_text(yaml.safe_dump({"job": {"memory": "500M", "cpus": 1, "shards": 1}}))
    words = ["run", "--executor", "slurm", "--config", config, "--root", root, "--until", "seed", "--cluster", alone]
    job = re.search(r"seed: job (\d+)", speedlit(*words, "--detach"))[1]
    wait_for(lambda: (root / "stages" / "03-seed" / "begun.json").exists(), 60, "the stage has begun")
    call("scancel", "--signal=USR1", f"{job}.0")
    speedlit(*words)
    assert "ended with code 138: the job is requeued" in (root / "slurm" / f"03-seed-{job}.log").read_text()
    assert records(root) == records(single)


def test_a_stage_trains_over_two_nodes(config: Path, single: Path) -> None:
    """The stage is one process in the job's script, its fit one rank on each node: the losses of the fit in one process."""
    alone, root, wide = config.parent / "alone-junior", config.parent / "nodes", config.parent / "wide.yaml"
    wide.write_text(yaml.safe_dump({"job": {"memory": "2000M", "cpus": 1, "nodes": 2}}))
    for copy in (alone, root):
        shutil.copytree(single, copy)
    speedlit("run", "--config", config, "--root", alone, "--until", "junior")
    speedlit("run", "--executor", "slurm", "--config", config, "--root", root, "--until", "junior", "--cluster", wide)
    assert sorted(path.name[-9:] for path in (root / "slurm").glob("04-junior-*-rank*.log")) == ["rank0.log", "rank1.log"]
    assert read_losses(root / "stages" / "04-junior") == pytest.approx(read_losses(alone / "stages" / "04-junior"), rel=1e-5)


def read_losses(fit: Path) -> list[float]:
    with (fit / "metrics.csv").open(newline="") as stream:
        return [float(row["loss"]) for row in csv.DictReader(stream)]
