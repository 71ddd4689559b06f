"""The front door: fast, and every mistake answered in words."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from speedlit.cli import COMMANDS, main
from speedlit.pipeline.yamlfiles import SHORT


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from speedlit.cli import main; main(['--help']); main(['list']); "
        "print([m for m in sys.modules if m in ('torch', 'lightning', 'transformers')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.rstrip().endswith("[]")


def test_list_shows_what_a_recipe_can_name_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    words = {line.split()[0] for line in out.splitlines() if line.startswith("  ")}
    assert set(SHORT) <= words
    assert {"demo", "fit/senior", "sigmoid", "paper"} <= words
    assert not words & {"Schedule", "SpeedModule", "Samples", "Steps", "ShardData"}


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        if command in ("fit", "validate", "test"):
            continue
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0, command
        assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rum"], "did you mean `speedlit run`"),
        (["--config", "x", "run"], "stands before the command"),
        (["run", "--config", "dmo"], "demo"),
        (["run", "--config", "demo", "--until", "junio"], "no such stage"),
        (["run", "--config", "demo", "--until", "seed", "--from", "junior"], "comes after --until"),
        (["run", "--config", "demo", "--counts.seed", "many"], "command line: counts.seed"),
        (["run", "--config", "demo", "--counts.sed", "1"], "counts.seed"),
        (["run", "--config", "demo", "stray"], "unexpected word"),
        (["synth", "junior", "--config", "demo"], "no synthesis stage"),
        (["synth", "seed", "--config", "demo", "--shard", "4/4"], "i/n"),
        (["report", "nowhere"], "not the root of a run"),
    ],
)
def test_usage_mistakes(words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_an_empty_topics_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none.txt").write_text("\n\n")
    words = ["run", "--config", "demo", "--root", str(tmp_path / "r"), "--topics", str(tmp_path / "none.txt"), "--until", "tasks"]
    assert main(words) == 2
    assert "none.txt" in capsys.readouterr().err
    words[words.index("--topics") + 1] = str(tmp_path / "absent.txt")
    assert main(words) == 2
    assert "absent.txt" in capsys.readouterr().err


def test_an_unreachable_teacher_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    (tmp_path / "topics.txt").write_text("Arts/Movies\n")
    start = time.monotonic()
    assert main(["run", "--config", "demo", "--root", str(tmp_path / "r"), "--topics", str(tmp_path / "topics.txt"), "--until", "tasks"]) == 1
    assert "127.0.0.1:9" in capsys.readouterr().err
    assert time.monotonic() - start < 60


def test_a_run_that_stops_early_says_where_it_is_and_how_it_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "topics.txt").write_text("Arts/Movies\n")
    words = ["run", "--config", "demo", "--root", str(tmp_path / "r"), "--topics", str(tmp_path / "topics.txt"), "--until", "topics"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'r' / 'stages'}" in said and f"speedlit report {tmp_path / 'r'}" in said


@pytest.mark.parametrize("damage", ["[]", "{", '{"identity": 3}'])
def test_a_damaged_run_file_is_named(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "r"
    root.mkdir()
    (root / "run.json").write_text(damage)
    assert main(["run", "--config", "demo", "--root", str(root), "--until", "topics"]) == 2
    assert str(root) in capsys.readouterr().err


def test_a_binary_task_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tasks.txt").write_bytes(b"\xff\xfe\x00")
    assert main(["evaluate", str(tmp_path), "--tasks", str(tmp_path / "tasks.txt")]) == 2
    assert "not UTF-8" in capsys.readouterr().err
