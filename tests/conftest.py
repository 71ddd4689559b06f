"""What no test may leave to the next one in its process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def no_process_group_is_left() -> Iterator[None]:
    """A fit on one process that is refused late has its process group already: children forked later would take it for theirs, and hang."""
    before = {name: os.environ.get(name) for name in RENDEZVOUS}
    yield
    if "torch.distributed" in sys.modules:
        import torch.distributed

        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
