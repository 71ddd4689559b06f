"""Names for the trainer: ``trainer.strategy`` may be single, ddp, or whatever Lightning knows.

LoRA trains few weights, so ddp is the default on several devices; sharding gains only where the base doesn't fit.
"""

from __future__ import annotations

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
