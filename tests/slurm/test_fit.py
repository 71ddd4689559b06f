"""The shipped fit.sbatch on two nodes: a job that is preempted, or loses a rank, goes on in the same losses to the last digit."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from tests.modules.recipes import prepare, recipe
from tests.slurm.mini import call, state, wait_for

PREEMPTIONS = int(os.environ.get("SPEEDLIT_PREEMPTIONS", "1"))
REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(240 + 90 * PREEMPTIONS)


@pytest.fixture(scope="module")
def root(slurm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("slurm"))


def submit(root: Path, place: Path, delay: float = 0.0, *more: str, once: bool = False) -> str:
    """The id of a job of two nodes that trains eight steps; with ``delay`` each takes one rank so many seconds, and the other two times that."""
    slow = {"class_path": "tests.slurm.slow.Slow", "init_args": {"seconds": delay, "once": once}}
    trainer = {"default_root_dir": str(place), "strategy": "ddp", "callbacks": [slow, {"class_path": "Resume", "init_args": {"every_n_steps": 1}}]}
    place.mkdir()
    (place / "fit.yaml").write_text(yaml.safe_dump({**recipe(root, "sft", trainer=trainer), "threads": 1}))
    words = ["--nodes=2", "--ntasks-per-node=1", "--mem=500", f"--output={place}/job.log", *more, "scripts/slurm/fit.sbatch"]
    words += ["--config", str(place / "fit.yaml")]
    own = {"SPEEDLIT": shlex.join([sys.executable, "-m", "speedlit"]), "SPEEDLIT_LOGS": str(place / "logs"), "OMP_NUM_THREADS": "1"}
    return call("sbatch", "--parsable", f"--chdir={REPOSITORY}", *words, PYTHONPATH=str(REPOSITORY), **own)


def lines(place: Path) -> int:
    """Steps in metrics.csv."""
    path = place / "metrics.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def said(place: Path) -> str:
    """The logs of a job."""
    return "\n".join(f"--- {path}\n{path.read_text()}" for path in [place / "job.log", *sorted((place / "logs").glob("*"))] if path.exists())


def finished(place: Path, job: str, seconds: float = 120) -> str:
    """The losses of a job once it has ended well."""
    wait_for(lambda: state(job) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", ""), seconds, f"job {job} ends", lambda: said(place))
    assert state(job) == "COMPLETED", said(place)
    assert (place / "model" / "adapter_model.safetensors").is_file()
    return (place / "metrics.csv").read_text()


@pytest.fixture(scope="module")
def straight(root: Path) -> str:
    return finished(root / "straight", submit(root, root / "straight"))


def test_two_nodes_fit(root: Path, straight: str) -> None:
    assert len(straight.splitlines()) == 9
    assert len(list((root / "straight" / "logs").glob("fit-*-rank[01].log"))) == 2


@pytest.mark.parametrize("number", range(PREEMPTIONS))
def test_a_preempted_job_goes_on_in_the_same_losses(root: Path, straight: str, number: int) -> None:
    place = root / f"preempted-{number}"
    job = submit(root, place, delay=0.3)
    wait_for(lambda: lines(place) >= 2, 90, "two steps are done", lambda: said(place))
    call("sbatch", "--parsable", "--partition=high", "--nodes=2", "--mem=500", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    assert finished(place, job) == straight
    assert "and the job requeued" in said(place)
    assert "going on from" in said(place)


def test_a_job_that_loses_a_node_goes_on_in_the_same_losses(slurm: Path, root: Path, straight: str) -> None:
    """The second node dies with all that runs on it, is taken out of service, and comes back later."""
    place = root / "lost"
    job = submit(root, place, delay=0.5)
    wait_for(lambda: lines(place) >= 2, 90, "two steps are done", lambda: said(place))
    rank = int((place / "pid-1").read_text())
    step = int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1])  # its parent, Slurm's own process on that node
    daemon = int((slurm / "slurmd.n2.pid").read_text())
    for process in (daemon, step, rank):
        os.kill(process, 9)
    call("scontrol", "update", "nodename=n2", "state=down", "reason=dead")
    wait_for(lambda: state(job) == "PENDING", 60, "the job is requeued", lambda: said(place))
    call("slurmd", "-N", "n2")  # which registers it again, so that it is taken back into service
    assert finished(place, job) == straight
    assert "going on from" in said(place)
    assert "Restarts=0" not in call("scontrol", "show", "job", job)


def test_a_job_that_loses_a_rank_goes_on_in_the_same_losses(root: Path, straight: str) -> None:
    place = root / "killed"
    job = submit(root, place, delay=0.3)
    wait_for(lambda: lines(place) >= 2, 90, "two steps are done", lambda: said(place))
    os.kill(int((place / "pid-1").read_text()), 9)
    assert finished(place, job) == straight
    assert "the job is requeued" in said(place) and "going on from" in said(place)
