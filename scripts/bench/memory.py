"""Peak memory of one side of a row, in a process of its own: the highest resident size after imports, less what imports took.

    python -m scripts.bench.memory sft_32k ours
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def peak(row: str, side: str, threads: int) -> dict[str, Any]:
    """MiB above the imports' level, measured in a child process.

    Args:
        row: name of a row.
        side: ``ours`` or the name of a candidate.
        threads: of the child.
    """
    words = [sys.executable, "-m", "scripts.bench.memory", row, side]
    child = subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def status(name: str) -> float:
    """A line of /proc/self/status in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def main(row: str, side: str) -> None:
    import datasets  # noqa: F401
    import mteb  # noqa: F401
    import sentence_transformers  # noqa: F401
    import torch
    import trl.trainer.dpo_trainer
    import trl.trainer.sft_trainer  # noqa: F401

    import speedlit.modules.dpo
    import speedlit.pipeline.recipe  # noqa: F401
    from scripts.bench.rows import ROWS

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory() as folder:
        made = ROWS[row](Path(folder))
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
        rate = (made.ours if side == "ours" else made.theirs[side])()
        print(json.dumps({"peak": status("VmHWM") - before, "rate": rate}))


if __name__ == "__main__":
    main(*sys.argv[1:])
