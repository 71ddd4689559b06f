"""`speedlit init`: each kind of project trains, and its own test passes, as it was written."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from speedlit.cli import main
from speedlit.commands.init import KINDS
from speedlit.pipeline.yamlfiles import read_recipe


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("init")
    for kind in KINDS:
        assert main(["init", str(root / kind), "--kind", kind]) == 0
    return root


def test_the_tests_of_all_kinds_pass(projects: Path, tmp_path: Path) -> None:
    """From another folder, in a process that knows nothing of the projects."""
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(projects / kind) for kind in KINDS)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "7 passed" in done.stdout


@pytest.mark.parametrize(("kind", "figure"), [("sft", "sure"), ("dpo", "margin"), ("embedding", "hits"), ("loop", "sure")])
def test_a_project_trains_as_its_readme_says(projects: Path, kind: str, figure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = projects / f"{kind}-moved"
    (projects / kind).rename(moved)
    monkeypatch.chdir(moved)
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        assert main(["fit", "--config", "fit.yaml", "--trainer.max_steps", "1"]) == 0
    finally:
        moved.rename(projects / kind)
    with (projects / kind / "runs" / "fit" / "metrics.csv").open() as stream:
        assert any(figure in name for name in next(csv.DictReader(stream)))
    assert len((projects / kind / "README.md").read_text().splitlines()) <= 10


def test_a_folder_that_holds_something_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("x")
    for place in (tmp_path, tmp_path / "mine.txt"):
        assert main(["init", str(place)]) == 2
        assert str(place) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_link_to_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert main(["init", str(tmp_path / "link")]) == 2
    assert f"{tmp_path / 'link'} is a link to {tmp_path / 'gone'}, which doesn't exist" in capsys.readouterr().err


def test_here_is_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "one.yaml").write_text('data: {init_args: {shards: ["{here}/a", b]}}\n')
    assert read_recipe(str(tmp_path / "one.yaml")) == {"data": {"init_args": {"shards": [f"{tmp_path.resolve()}/a", "b"]}}}
    assert str(tmp_path.resolve()) in sys.path
