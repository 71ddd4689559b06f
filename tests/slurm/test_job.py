"""When the job of a stage goes back into the queue; Slurm's commands are played, so this runs anywhere."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from speedlit.errors import SpeedlitError, UsageError
from speedlit.files import write_json
from speedlit.pipeline.fitting import begin
from speedlit.pipeline.launch import LAUNCH, launched
from speedlit.pipeline.slurm import ONE, SCRIPT, read_job, starting_ranks


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


def test_what_a_job_asks_for_is_what_its_file_says(tmp_path: Path) -> None:
    """YAML 1.1 makes 43200 of 12:00:00, which are 30 days of minutes, 83 of 0123, and False of no."""
    path = tmp_path / "cluster.yaml"
    path.write_text("job: {time: 12:00:00, memory: 32000, account: '0123'}")
    assert {"--time=12:00:00", "--mem=32000", "--account=0123"} <= set(read_job(str(path)).words("topics"))
    for wrong in ("account: 0123", "partition: no", "qos: [a]", "time: 1.5", "time: true", "setup: [module load cuda]", "nodes: true"):
        path.write_text(f"job: {{{wrong}}}")
        with pytest.raises(UsageError, match=f"job.{wrong.partition(':')[0]} is .* must be (text: put it in quotes|a whole number)"):
            read_job(str(path))


def test_a_figure_that_was_there_before_is_not_taken_for_the_result(tmp_path: Path) -> None:
    """`speedlit fit` leaves a fit.json too, of whatever was trained in that folder."""
    write_json(tmp_path / "fit.json", {"steps": 1, "seconds": 1, "final": {}})
    for _ in range(2):  # the second time after a kill
        assert begin({"trainer": {"max_steps": 9}}, tmp_path) is None
    write_json(tmp_path / "fit.json", {"steps": 9, "seconds": 1, "final": {}})
    assert begin({"trainer": {"max_steps": 9}}, tmp_path) == {"steps": 9, "seconds": 1, "final": {}}
    (tmp_path / "fit.json").write_text("[]")
    with pytest.raises(UsageError, match="fit.json is damaged"):
        begin({"trainer": {"max_steps": 9}}, tmp_path)


def test_the_ranks_of_every_job_meet_in_the_same_place(tmp_path: Path) -> None:
    """The loop's jobs and the sbatch files, which are no part of an installed package, each have the lines that say where."""
    (tmp_path / "scontrol").write_text("#!/bin/sh\n[ $2 = hostnames ] && printf 'n1\\nn2\\n' || echo NodeAddr=10.0.0.7 NodeHostName=n1\n")
    (tmp_path / "scontrol").chmod(0o755)
    files = [(Path(__file__).parents[2] / "scripts" / "slurm" / f"{name}.sbatch").read_text() for name in ("fit", "evaluate")]
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "4000", "SLURM_JOB_NODELIST": "n[1-2]"}
    for given, met in (({}, "10.0.0.7:20000"), ({"SLURM_RESTART_COUNT": "2"}, "10.0.0.7:20002"), ({"MASTER_ADDR": "h", "MASTER_PORT": "9"}, "h:9")):
        for script in (*files, starting_ranks("log")):
            said = [line for line in script.splitlines() if line.startswith(("first=", "address=", "export MASTER_"))]
            assert len(said) == 4
            lines = "\n".join([*said, 'printf %s "$MASTER_ADDR:$MASTER_PORT"'])
            assert subprocess.run(["bash", "-uc", lines], env={**own, **given}, capture_output=True, text=True, check=True).stdout == met


def test_the_words_that_start_ranks_survive_a_root_with_blanks(tmp_path: Path) -> None:
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho NodeAddr=10.0.0.7 NodeHostName=n1\n")
    (tmp_path / "scontrol").chmod(0o755)
    script = starting_ranks("/runs/it's my $HOME/04-junior-%j-rank%t.log") + f'printf %s "${LAUNCH}"\necho "|$MASTER_ADDR"'
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4"}
    said, _, address = subprocess.run(["bash", "-c", script], env=own, capture_output=True, text=True, check=True).stdout.rpartition("|")
    assert shlex.split(said)[1:3] == ["--nodes=2", "--ntasks-per-node=4"]
    assert shlex.split(said)[-1] == "--output=/runs/it's my $HOME/04-junior-%j-rank%t.log"
    assert address == "10.0.0.7\n"


def test_outside_of_slurm_the_words_that_start_ranks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_NNODES", raising=False)
    with pytest.raises(UsageError, match="SPEEDLIT_LAUNCH is set, but this is no job of Slurm .*; unset SPEEDLIT_LAUNCH to train"):
        launched({}, tmp_path / "fit", "srun")
    assert not (tmp_path / "fit").exists()
