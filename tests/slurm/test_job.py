"""When the job of a stage goes back into the queue; Slurm's commands are played, so this runs anywhere."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from speedlit.errors import SpeedlitError
from speedlit.pipeline.launch import launched
from speedlit.pipeline.slurm import ONE, SCRIPT


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [
        (0, 0, False),
        (1, 0, False),
        (2, 0, False),
        (137, 0, True),
        (137, 2, True),
        (137, 3, False),
        (75, 0, False),
        (143, 0, False),
        (138, 0, True),
        (138, 9, True),
    ],
)
def test_a_killed_stage_goes_back_a_few_times_and_a_preempted_one_always(code: int, restarts: int, requeued: bool, tmp_path: Path) -> None:
    for name, text in (("srun", f"exit {code}"), ("scontrol", f'echo "$@" >> {tmp_path}/said')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(SCRIPT.format(setup="", command=ONE + "true", attempts=3))
    task = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "2", "SLURM_RESTART_COUNT": str(restarts)}
    done = subprocess.run(["bash", str(tmp_path / "job.sh")], env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **task}, capture_output=True)
    assert done.returncode == code, done.stderr
    said = (tmp_path / "said").read_text() if (tmp_path / "said").exists() else ""
    assert said == ("requeue 10_2\n" if requeued else "")


@pytest.mark.parametrize("code", [1, 2, 75, 137, 138])
def test_the_ranks_of_a_fit_hand_their_exit_code_to_the_stage(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the job's script, which sees the stage alone, knows whether to try again."""
    monkeypatch.setenv("SLURM_NNODES", "2")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    with pytest.raises(SpeedlitError) as caught:
        launched({"trainer": {"max_steps": 3}}, tmp_path / "fit", f"sh -c 'exit {code}'")
    assert caught.value.exit_code == code
    trainer = {"max_steps": 3, "strategy": "ddp", "num_nodes": 2, "devices": 4, "default_root_dir": str(tmp_path / "fit")}
    assert yaml.safe_load((tmp_path / "fit" / "fit.yaml").read_text()) == {"trainer": trainer}
