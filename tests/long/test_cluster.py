"""docs/clusters.md: its job, submitted to the mini Slurm, with the stand-in of the 8B model on two nodes that have no GPUs."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from speedlit.data.shards import write_shards
from tests.blocks import ROOT, Block, blocks, run
from tests.helpers import sft_rows
from tests.long import LONG
from tests.long.paper import stand_ins
from tests.slurm.conftest import slurm
from tests.slurm.mini import state, wait_for

__all__ = ["slurm"]
pytestmark = LONG
CHANGED = {  # what the page leaves to the reader, and what two nodes without GPUs can't have
    "SBATCH_PARTITION=...": "SBATCH_PARTITION=low",
    "/path/venv/bin/python": sys.executable,
    "--gpus-per-node=8 --ntasks-per-node=8": "--ntasks-per-node=1 --mem=2000",
    "--trainer trainer/slurm.yaml": "--trainer trainer/slurm.yaml --trainer.accelerator cpu",
}


def test_the_job_of_the_page_trains_on_two_nodes(slurm: Path, tmp_path: Path) -> None:  # noqa: F811
    write_shards(sft_rows(64), tmp_path / "shards", "sft")
    stand_ins(tmp_path / "hub")
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    (block,) = [block for block in blocks(ROOT / "docs/clusters.md") if "sbatch" in block.text]
    text = block.text
    for word, other in {**CHANGED, "/shared": str(tmp_path)}.items():
        assert word in text
        text = text.replace(word, other)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    job = re.search(r"Submitted batch job (\d+)", run(Block("bash", text), tmp_path, env))[1]
    logs = tmp_path / "logs"
    wait_for(lambda: state(job) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", ""), 300, f"job {job} ends", lambda: said(tmp_path))
    assert state(job) == "COMPLETED", said(tmp_path)
    assert sorted(path.name for path in logs.glob("fit-*")) == [f"fit-{job}-rank{rank}.log" for rank in (0, 1)]
    assert (tmp_path / "runs/junior/model/adapter_model.safetensors").is_file()


def said(place: Path) -> str:
    """The logs of the job."""
    return "\n".join(path.read_text() for path in [*place.glob("*.log"), *place.glob("logs/*.log")])
