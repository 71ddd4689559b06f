"""The loop on a Slurm cluster: each stage a job after the one before it, an array and a putting-together for those that can be cut.

Submitted and followed from the login node. What is in the queue is found again by ``<root>/slurm/jobs.json``: the same command goes
on following, and submits only what is missing.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from speedlit.errors import SpeedlitError, UsageError
from speedlit.files import atomic, read_object, remove, write_json
from speedlit.pipeline.config import RunConfig
from speedlit.pipeline.launch import LAUNCH
from speedlit.pipeline.loop import Wanted, locked, owned, select, stages, summarise
from speedlit.pipeline.stage import SUCCESS, Stage, fingerprint, state
from speedlit.pipeline.yamlfiles import find_recipe, read_yaml, unknown_keys

LOOKS = 3  # times that a job must be gone without its stage's mark before it counts as failed: a shared disk may lag
TRAINING = ("junior", "senior", "revisor", "embedder")
ON_GPUS = (*TRAINING, "candidates", "synthesis", "refinement", "evaluation")
SCRIPT = """#!/bin/bash
set -uo pipefail
{setup}
export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
{command}
code=$?
again() {{
    echo "ended with code $code: the job is requeued"
    scontrol requeue "${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_}}${{SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}}"
}}
case $code in
    0 | 1 | 2) ;;   # done, or a failure that another attempt would meet again
    75 | 143) ;;    # saved and in the queue already; ended by Slurm, which requeues where that is wanted
    138) again ;;   # USR1: preemption or the time limit, however often
    *) [ "${{SLURM_RESTART_COUNT:-0}}" -ge {attempts} ] || again ;;
esac
exit "$code"
"""
ONE = "srun --ntasks=1 --kill-on-bad-exit=1 "  # before the command of a stage that is one process
# A fit over several ranks: the stage runs in the script itself, and starts its fits through srun. Rank 0 is on the first node, whose name may
# not resolve on the others; the port lies below those that systems hand out, another one for each attempt.
RANKS = """first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node --oneliner "$first" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
export MASTER_ADDR=${{MASTER_ADDR:-${{address:-$first}}}}
export MASTER_PORT=${{MASTER_PORT:-$((12000 + (SLURM_JOB_ID * 7 + ${{SLURM_RESTART_COUNT:-0}}) % 20000))}}
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${{TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}}
export {launch}="srun --nodes=$SLURM_NNODES --ntasks-per-node=$SLURM_NTASKS_PER_NODE --kill-on-bad-exit=1 --open-mode=append"{log}
"""


@dataclass
class Job:
    """What a job of a stage asks Slurm for: the ``job`` section of ``trainer/slurm.yaml``, or of the file that ``cluster`` names.

    Args:
        account: whom it is charged to; null leaves it to SBATCH_ACCOUNT or the cluster, likewise with the next four.
        partition: where it runs.
        qos: its class of service.
        constraint: features of the nodes.
        time: longest run, such as ``12:00:00``.
        cpus: CPUs of a process.
        memory: memory of a node, such as ``32G``; null leaves it to the cluster.
        gpus: GPUs, on each of its nodes, of a stage that trains, generates or evaluates; null: none are asked for.
        nodes: nodes of a stage that trains. With several, or several GPUs, its fits have one rank for each GPU.
        shards: tasks in the array of a stage that can be cut.
        attempts: times that a killed job is requeued.
        setup: lines of shell before the command, such as ``module load cuda``.
        options: further words for sbatch.
    """

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | None = None
    cpus: int = 4
    memory: str | None = None
    gpus: int | None = None
    nodes: int = 1
    shards: int = 8
    attempts: int = 3
    setup: str = ""
    options: list[str] = field(default_factory=list)

    def ranks(self, stage: str) -> tuple[int, int]:
        """Nodes of a stage, and processes of its fits on each."""
        return (self.nodes, self.gpus or 1) if stage in TRAINING else (1, 1)

    def words(self, stage: str) -> list[str]:
        """Options of sbatch."""
        nodes, each = self.ranks(stage)
        asked = {
            "account": self.account, "partition": self.partition, "qos": self.qos, "constraint": self.constraint, "time": self.time, "nodes": nodes,
            "ntasks-per-node": each, "cpus-per-task": self.cpus, "mem": self.memory, "gpus-per-node": self.gpus if stage in ON_GPUS else None,
        }  # fmt: skip
        return [f"--{name}={value}" for name, value in asked.items() if value is not None] + [str(word) for word in self.options]


def read_job(name: str) -> Job:
    """The ``job`` section of a trainer file.

    Raises:
        UsageError: no such file, an unknown key, or a count below 1.
    """
    path = find_recipe(name)
    given = read_yaml(path).get("job") or {}
    if not isinstance(given, dict):
        raise UsageError(f"{path}: job must hold keys and values, such as partition: gpu")
    if mistakes := unknown_keys(given, vars(Job()), str(path), "job."):
        raise UsageError("\n".join(mistakes))
    given = {key: value for key, value in given.items() if value is not None}
    for key in ("cpus", "shards", "attempts", "gpus", "nodes"):
        value = given.get(key, 1)
        if isinstance(value, bool) or not (isinstance(value, int) and value >= 1):
            raise UsageError(f"{path}: job.{key} is {value}; it must be a whole number of at least 1")
    for key in ("account", "partition", "qos", "constraint", "setup", "time", "memory"):
        value = given.get(key, "")
        if not isinstance(value, str) and (key not in ("time", "memory") or type(value) is not int):  # 0123 and `no` are no names in YAML
            raise UsageError(f"{path}: job.{key} is {value!r}; it must be text: put it in quotes")
    if not isinstance(given.get("options", []), list):
        raise UsageError(f"{path}: job.options must be a list of words for sbatch")
    return Job(**given)


def run(config: RunConfig, wanted: Wanted, detach: bool = False, poll: float = 5.0, say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Submit what is missing, follow it to its end (unless ``detach``), and return the summary.

    Raises:
        UsageError: no Slurm here, or jobs of another config are in the queue for this root.
        SpeedlitError: a job was refused, or failed; its log is named.
    """
    say = say or (lambda text: print(text, file=sys.stderr, flush=True))
    job, plain, root = read_job(config.cluster), config.plain(), Path(config.root).resolve()
    every = select(config, wanted)
    with locked(root, "slurm/.lock", f"another speedlit process is submitting jobs for {root}; wait for it"):  # one submits at a time
        waiting = submit(every, wanted, plain, root, job, say)
    if not detach:
        follow(waiting, every, root, poll, say)
    return summarise(root, stages(), plain)


def submit(every: dict[str, Stage], wanted: Wanted, plain: dict[str, Any], root: Path, job: Job, say: Callable[[str], None]) -> dict[str, list[str]]:
    """Bring every stage that is not finished into the queue; returns the jobs of those stages, in order.

    Raises:
        UsageError: the queue holds jobs for this root that this command would contradict.
    """
    place, ledger = root / "slurm" / "config.yaml", root / "slurm" / "jobs.json"
    jobs = read_object(ledger) if ledger.exists() else {}
    queued = in_queue()
    kept = {name: ids for name, ids in jobs.items() if ids[-1] in queued}
    config = {**plain, "root": str(root)}
    if kept:
        remedy = "wait for them, or end them with: scancel " + " ".join(i for ids in kept.values() for i in ids)
        if read_yaml(place) != yaml.safe_load(yaml.safe_dump(config)):
            raise UsageError(f"jobs of another config are in the queue for {root}; {remedy}")
        if wanted.start:
            raise UsageError(f"--from {wanted.start}: jobs for {root} are in the queue; {remedy}")
        missing = [name for name, stage in every.items() if look(stage, plain, root) != "done"]
    else:
        with owned(root, config):
            missing = clear(every, wanted, plain, root)
    with atomic(place) as stream:
        yaml.safe_dump(config, stream, sort_keys=False)
    waiting: dict[str, list[str]] = {}
    for name, stage in every.items():
        if name not in missing:
            say(f"{name}: already done")
        elif name in kept and all(earlier in kept for earlier in waiting):
            waiting[name] = kept[name]
            say(f"{name}: in the queue as job {' '.join(kept[name])}")
        else:
            if name in kept:  # it waits for a job that is no more
                slurm("scancel", *kept[name])
            after = list(waiting.values())[-1][-1] if waiting else None
            waiting[name] = submit_stage(stage, plain, root, job, after)
            write_json(ledger, {**jobs, **waiting})
            say(f"{name}: job {' '.join(waiting[name])}" + (f", an array of {job.shards} and what puts it together" if len(waiting[name]) == 2 else ""))
    return waiting


def look(stage: Stage, plain: dict[str, Any], root: Path) -> str:
    """The state of a stage; ``stale`` where it was made from what is no longer there.

    Raises:
        SpeedlitError: a finished file was changed by hand.
    """
    every = stages()
    if any(not (every[need].folder(root) / "manifest.json").exists() for need in stage.needs):
        return "stale: its input is to be made" if stage.folder(root).exists() else "new"
    now = state(stage, fingerprint(stage, plain, root, every), root)
    if now.startswith("damaged"):
        raise SpeedlitError(f"{stage.name}:{now[len('damaged:') :]}; put the file back, or remove {stage.folder(root)} to make it again")
    return now


def clear(every: dict[str, Stage], wanted: Wanted, plain: dict[str, Any], root: Path) -> list[str]:
    """The stages that are to be run; what is stale of them is removed here, as shards side by side could not."""
    missing: list[str] = []
    for stage in every.values():
        again = stage.name == wanted.start or any(need in missing for need in stage.needs)
        now = "stale" if again else look(stage, plain, root)
        if now != "done":
            missing.append(stage.name)
        if now.startswith("stale") and stage.folder(root).exists():
            (stage.folder(root) / SUCCESS).unlink(missing_ok=True)  # first, so that a crash leaves no finished-looking folder
            remove(stage.folder(root))
    return missing


def submit_stage(stage: Stage, plain: dict[str, Any], root: Path, job: Job, after: str | None) -> list[str]:
    """One stage's jobs: an array and the one that puts it together, or one alone."""
    place, ids = root / "slurm", list[str]()
    cut = stage.sharded and job.shards > 1 and plain["teacher"]["mode"] == "live"  # batches are asked for whole
    for array in [True, False] if cut else [False]:
        words = [sys.executable, "-m", "speedlit", "run", "--only", stage.name, "--config", str(place / "config.yaml")]
        command = shlex.join(words) + (" --shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" if array else "")
        script = place / f"{stage.number:02d}-{stage.name}{'-shard' if array else ''}.sh"
        setup = job.setup.rstrip()
        if job.ranks(stage.name) == (1, 1):
            command = ONE + command
        else:
            setup += "\n" + starting_ranks(f"{place}/{stage.number:02d}-{stage.name}-%j-rank%t.log")
        with atomic(script) as stream:
            stream.write(SCRIPT.format(setup=setup, command=command, attempts=job.attempts))
        after = ids[-1] if ids else after
        log = f"{place}/{stage.number:02d}-{stage.name}-{'%A-%a' if array else '%j'}.log"
        told = slurm(
            "sbatch", "--parsable", "--requeue", "--open-mode=append", "--signal=USR1@120", "--kill-on-invalid-dep=yes",
            f"--job-name=speedlit-{stage.name}", f"--output={log}", *([f"--array=0-{job.shards - 1}"] if array else []),
            *([f"--dependency=afterok:{after}"] if after else []), *job.words(stage.name), str(script),
        )  # fmt: skip
        ids.append(told.split(";")[0])  # with several clusters, the name of one follows
    return ids


def starting_ranks(log: str) -> str:
    """Lines of shell that tell the stage how to start its fits, each rank with a log of its own."""
    word = shlex.quote(f"--output={log}")
    return RANKS.format(launch=LAUNCH, log=shlex.quote(f" {word}"))  # quoted once for the shell, once for who splits the words


def follow(waiting: dict[str, list[str]], every: dict[str, Stage], root: Path, poll: float, say: Callable[[str], None]) -> None:
    """Wait until every stage has its mark.

    Raises:
        SpeedlitError: the job of a stage is gone without it.
    """
    gone, todo = 0, list(waiting)
    try:
        while todo:
            queued = in_queue()  # before the mark is looked for: a job that ends in between has left it
            stage = every[todo[0]]
            if (stage.folder(root) / SUCCESS).exists():
                say(f"[{stage.number:2d}/{len(stages())}] {stage.name}: done")
                gone = 0
                todo.pop(0)
                continue
            gone = 0 if waiting[stage.name][-1] in queued else gone + 1
            if gone == LOOKS:
                if left := [i for later in todo for i in waiting[later] if i in queued]:
                    slurm("scancel", *left)
                words = last_words(root / "slurm", stage)
                raise SpeedlitError(f"{stage.name}: job {' '.join(waiting[stage.name])} failed; {words}. The same command goes on from here")
            time.sleep(poll)
    except KeyboardInterrupt:
        ids = " ".join(i for later in todo for i in waiting[later])
        say(f"no longer following; the jobs go on. The same command follows them again; to end them: scancel {ids}")
        raise


def last_words(place: Path, stage: Stage) -> str:
    """The log of a failed stage and what it says of an error, else its last line."""
    logs = sorted(place.glob(f"{stage.number:02d}-{stage.name}-*.log"), key=lambda path: path.stat().st_mtime)
    if not logs:
        return f"it has left no log in {place} (`scontrol show job` may say why)"
    errors = [(log, line) for log in logs for line in log.read_text(errors="replace").splitlines() if re.match(r"(error|\S*Error)\b", line)]
    log, line = errors[-1] if errors else (logs[-1], (logs[-1].read_text(errors="replace").splitlines() or [""])[-1])
    return f"its log {log} says: {line[:300]}"


def in_queue() -> set[str]:
    """Ids of this user's jobs that wait or run; the tasks of an array under the array's."""
    return set(slurm("squeue", "--noheader", f"--user={os.getuid()}", "--format=%F").split())


def slurm(*words: str) -> str:
    """What a Slurm command prints.

    Raises:
        UsageError: there is no such command.
        SpeedlitError: it failed.
    """
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UsageError(f"--executor slurm needs Slurm's commands, and there is no {words[0]} here; start it on the cluster's login node") from error
    if done.returncode:
        raise SpeedlitError(f"{words[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()
