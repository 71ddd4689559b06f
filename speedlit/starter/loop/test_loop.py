"""The project works: start with `pytest` in this folder."""

from __future__ import annotations

import csv
from pathlib import Path

from speedlit.cli import main
from speedlit.pipeline.configure import parse
from speedlit.pipeline.preflight import TRAINED, preflight

HERE = Path(__file__).resolve().parent


def test_every_training_stage_of_the_run_is_right() -> None:
    """Recipes, classes and base models, the junior's own module among them; nothing is trained."""
    preflight(TRAINED, parse(str(HERE / "run.yaml")).plain())


def test_the_loop_begins(tmp_path: Path) -> None:
    """The embedded teacher gives its topics."""
    assert main(["run", "--config", str(HERE / "run.yaml"), "--root", str(tmp_path / "run"), "--until", "topics"]) == 0
    assert (tmp_path / "run" / "summary.json").is_file()


def test_the_junior_trains_alone(tmp_path: Path) -> None:
    """Two steps on the small data set log the module's own figure."""
    assert main(["fit", "--config", str(HERE / "fit.yaml"), "--trainer.max_steps", "2", "--trainer.default_root_dir", str(tmp_path)]) == 0
    with (tmp_path / "metrics.csv").open() as stream:
        assert all(0 <= float(row["sure"]) <= 1 for row in csv.DictReader(stream))
