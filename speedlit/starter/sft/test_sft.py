"""The project works: start with `pytest` in this folder."""

from __future__ import annotations

import csv
from pathlib import Path

from speedlit.cli import main

HERE = Path(__file__).resolve().parent


def test_two_steps_log_the_own_figure(tmp_path: Path) -> None:
    """The module beside this file is found, trained and saved."""
    assert main(["fit", "--config", str(HERE / "fit.yaml"), "--trainer.max_steps", "2", "--trainer.default_root_dir", str(tmp_path)]) == 0
    with (tmp_path / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2
    assert all(0 <= float(row["sure"]) <= 1 for row in rows)
    assert (tmp_path / "model" / "speedlit.json").is_file()
