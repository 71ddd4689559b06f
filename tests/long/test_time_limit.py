"""A real time limit of Slurm, which has none below a minute: the job is told before it, saves, and goes on in its next attempt."""

from __future__ import annotations

from pathlib import Path

from tests.long import LONG
from tests.slurm.conftest import slurm
from tests.slurm.mini import call
from tests.slurm.test_fit import finished, root, said, straight, submit

__all__ = ["root", "slurm", "straight"]
pytestmark = LONG


def test_a_job_whose_time_runs_out_goes_on_in_the_same_losses(root: Path, straight: str) -> None:  # noqa: F811
    """Two minutes, for steps of ten seconds each; the signal is asked for 60 seconds before the end, and Slurm sends it up to half a minute earlier."""
    place = root / "late"
    job = submit(root, place, 5.0, "--time=2", "--signal=USR1@60", once=True)
    assert "TimeLimit=00:02:00" in call("scontrol", "show", "job", job)
    assert finished(place, job, 400) == straight
    assert "Restarts=0" not in call("scontrol", "show", "job", job)
    assert "saved after step" in said(place) and "and the job requeued" in said(place) and "going on from" in said(place)
