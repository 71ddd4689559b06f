"""One fit of a stage over all ranks of a Slurm job: srun starts ``speedlit fit`` on every node, and this process waits.

The job's script says how in ``SPEEDLIT_LAUNCH`` (``pipeline/slurm.py``); the stage around the fit runs once, on the first node.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from speedlit.errors import Requeued, SpeedlitError, UsageError
from speedlit.files import atomic, read_object
from speedlit.pipeline.fitting import RESULT, begin, placed

LAUNCH = "SPEEDLIT_LAUNCH"


def launched(config: dict[str, Any], out: Path | str, words: str) -> dict[str, Any]:
    """Train by a recipe on every rank; the same as ``fitting.fit`` otherwise.

    Args:
        config: the structure of a ``speedlit fit`` YAML.
        out: the folder of the fit, on a disk that all nodes see.
        words: the command before ``speedlit fit``, such as ``srun --nodes=2 --ntasks-per-node=8``.

    Returns:
        What ``fitting.fit`` does.

    Raises:
        Requeued: a signal of Slurm: the fit is saved and the job in the queue again.
        UsageError: this is no job of Slurm.
        SpeedlitError: the ranks failed; their exit code is this process's, so that the job's script knows whether to try again.
    """
    if not os.environ.get("SLURM_NNODES"):
        raise UsageError(f"{LAUNCH} is set, but this is no job of Slurm (there is no SLURM_NNODES); unset {LAUNCH} to train in this process")
    out = Path(out)
    if (done := begin(config, out)) is not None:
        return done
    recipe, ranks = out / "fit.yaml", over_ranks(config)
    with atomic(recipe) as stream:
        yaml.safe_dump(placed(ranks, out), stream, sort_keys=False)
    command = [*shlex.split(words), sys.executable, "-m", "speedlit", "fit", "--config", str(recipe)]
    code = subprocess.run(command).returncode
    if code == Requeued.exit_code:
        raise Requeued(f"{out.name}: saved by its ranks")
    if code:
        error = SpeedlitError(f"the ranks of {out} ended with code {code}; their logs, beside this one, say why")
        error.exit_code = code
        raise error
    return read_object(out / RESULT, "steps", "seconds", "final")


def over_ranks(config: dict[str, Any]) -> dict[str, Any]:
    """The recipe for this job's nodes and tasks; gradients are exchanged (ddp) unless it says how itself."""
    trainer = dict(config.get("trainer") or {})
    if trainer.get("strategy") in (None, "single", "auto"):
        trainer["strategy"] = "ddp"
    trainer |= {"num_nodes": int(os.environ["SLURM_NNODES"]), "devices": int(os.environ.get("SLURM_NTASKS_PER_NODE", "1"))}
    return {**config, "trainer": trainer}
