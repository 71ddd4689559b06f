"""Names for the trainer: ``trainer.strategy`` may be single, ddp, or whatever Lightning knows.

LoRA trains few weights, so ddp is the default on several devices; sharding gains only where the base doesn't fit.
"""

from __future__ import annotations

import os
from typing import Any

from speedlit.errors import UsageError


def strategy(name: Any) -> Any:
    """What Lightning is given for a name of ours; other values as they are.

    Raises:
        UsageError: fsdp, which this version can't do.
    """
    if name == "single":
        return "auto"
    if isinstance(name, str) and name.startswith(("fsdp", "deepspeed")):
        raise UsageError(f"trainer.strategy is {name}, which speedlit doesn't support yet; use ddp (with LoRA or QLoRA only the adapters are exchanged)")
    return name


def sharded(strategy: Any) -> bool:
    """Whether a Lightning strategy spreads the weights over processes, so that a layer has them only while it runs."""
    return type(strategy).__name__ in ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


def in_slurm() -> bool:
    """Whether this process is a task that srun has started."""
    return "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ


def environment() -> dict[str, Any] | None:
    """Who starts the ranks, inside a Slurm job: srun, without Lightning's own requeueing (it hangs), or in a batch script Lightning itself."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    place = "lightning.pytorch.plugins.environments."
    if in_slurm():
        return {"class_path": place + "SLURMEnvironment", "init_args": {"auto_requeue": False}}
    return {"class_path": place + "LightningEnvironment"}
