"""What machine a measurement was made on, and with what."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path


def cpu() -> str:
    """Number and name of the processors."""
    lines = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(lines)} x {lines[0]}" if lines else platform.processor()


def versions(names: Sequence[str]) -> dict[str, str]:
    """Of installed packages."""
    return {name: version(name) for name in names}
