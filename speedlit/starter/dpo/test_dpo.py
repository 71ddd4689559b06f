"""The project works: start with `pytest` in this folder."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import torch
from offset_loss import offset

from speedlit.cli import main

HERE = Path(__file__).resolve().parent


def test_the_loss_asks_for_its_margin() -> None:
    """With a margin as large as the offset the loss is that of a coin; without offset it is DPO's."""
    chosen, rejected = torch.tensor([5.0, 0.0]), torch.tensor([0.0, 0.0])
    assert torch.allclose(offset(chosen, rejected, 0.1, 0.5)[0], torch.tensor(math.log(2)))
    assert torch.allclose(offset(chosen, rejected, 0.1)[1], torch.tensor(math.log(2)))
    assert (offset(chosen, rejected, 0.1, 0.5) > offset(chosen, rejected, 0.1)).all()


def test_two_steps_begin_at_the_offset(tmp_path: Path) -> None:
    """At step one policy and reference are equal, so the loss is known."""
    assert main(["fit", "--config", str(HERE / "fit.yaml"), "--trainer.max_steps", "2", "--trainer.default_root_dir", str(tmp_path)]) == 0
    with (tmp_path / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert math.isclose(float(rows[0]["loss"]), math.log1p(math.exp(0.5)), rel_tol=1e-3)
    assert (tmp_path / "model" / "speedlit.json").is_file()
