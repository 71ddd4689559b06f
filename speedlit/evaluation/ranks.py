"""Several processes that score or encode together: who this one is, and what they exchange.

Every rank runs the same program. Texts are shared out and the vectors exchanged, so that each rank holds all of them; what
only one may do (files, the screen) is done by the first. Without processes beside this one nothing is exchanged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import distributed

from speedlit.errors import SpeedlitError, UsageError

BLOCK = 1 << 24  # numbers exchanged at a time
PATIENCE = timedelta(days=1)  # one rank may have the longest texts; a rank that has died breaks the connection at once


def size() -> int:
    """How many processes work together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def number() -> int:
    """Which of them this one is; 0 is the first."""
    return distributed.get_rank() if size() > 1 else 0


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Join the other processes that torchrun or srun has started, for the time of a command; yields the device of this one.

    Args:
        device: as the user named it; ``cuda`` becomes this process's own GPU.

    Raises:
        UsageError: one of several processes was to use a GPU by number.
    """
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    from speedlit.strategies import in_slurm

    torchrun = TorchElasticEnvironment.detect()
    found: Any = TorchElasticEnvironment() if torchrun else SLURMEnvironment(auto_requeue=False) if in_slurm() else None
    if found is None or found.world_size() == 1 or size() > 1:
        yield device
        return
    if device.startswith("cuda:"):
        raise UsageError(f"--device {device} would put {found.world_size()} processes on one GPU: say cuda, and each takes its own")
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = found.main_address, str(found.main_port)
    if device == "cuda":
        device = f"cuda:{found.local_rank() % max(torch.cuda.device_count(), 1)}"
        torch.cuda.set_device(device)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    distributed.init_process_group(backend, rank=found.global_rank(), world_size=found.world_size(), timeout=PATIENCE)
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def agreed(value: Any) -> Any:
    """What the first rank holds, on every rank."""
    if size() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def everyone(value: Any) -> list[Any]:
    """What each rank holds, in their order, on every rank.

    Raises:
        SpeedlitError: one of them has died.
    """
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    try:
        distributed.all_gather_object(found, value)
    except RuntimeError as error:  # the connection to a process that is no more
        raise SpeedlitError(f"another rank has ended before its time ({str(error).splitlines()[0][:160]}); what is finished is kept, start again") from error
    return found


def together(error: BaseException | None) -> None:
    """Go on only if no rank has failed, so that none waits for one that has given up.

    Raises:
        SpeedlitError: another rank failed; this rank's own error is raised as it is.
    """
    reasons = everyone(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    failed = [(rank, reason) for rank, reason in enumerate(reasons) if reason is not None]
    if failed:
        raise SpeedlitError(f"rank {failed[0][0]} failed: {failed[0][1]}")


def filled(rows: np.ndarray, device: torch.device) -> np.ndarray:
    """Rows (N, D) of which each rank has computed some and left the others 0: all of them, on every rank."""
    if size() == 1:
        return rows
    step = max(1, BLOCK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        block = torch.from_numpy(rows[start : start + step])
        shared = block.to(device) if distributed.get_backend() == "nccl" else block
        distributed.all_reduce(shared)  # every number is one rank's own plus zeros, so nothing is rounded
        if shared is not block:
            block.copy_(shared)
    return rows
