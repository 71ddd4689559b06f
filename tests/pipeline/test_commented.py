"""`--print_config`: every key with what it means, and what is printed is a config that gives the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from speedlit.cli import main
from speedlit.pipeline.commented import dump, of_dataclass, short
from speedlit.pipeline.config import Embedded, RunConfig, Teacher
from speedlit.pipeline.configure import parse
from speedlit.pipeline.limits import leaves


@pytest.mark.parametrize("name", ["demo", "speed"])
def test_a_printed_run_is_that_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--budget.usd", "3", "--prices", "{embedded: {input: 1, output: 2}, gpt-4o-2024-05-13: {input: 5, output: 15}}"]
    assert main(["run", "--config", name, *words, "--print_config"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert parse(str(tmp_path / "printed.yaml")) == parse(name, words)


def test_every_key_of_a_run_is_explained() -> None:
    config = RunConfig(teacher=Teacher(embedded=Embedded()))
    explain = of_dataclass(config)
    assert [key for key, _, _ in leaves(config) if not explain(tuple(key.split(".")))] == []
    lines = dump(config.plain(), explain).splitlines()
    assert "candidates: 5  # answers per root prompt (5 in the paper's worked example)" in [line.strip() for line in lines]
    assert max(map(len, lines)) <= 160


def test_a_printed_fit_is_that_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model.adapter", "adapter/lora.yaml", "--trainer.callbacks+=Throughput", "--trainer.max_steps", "3"]
    assert main(["fit", "--config", "fit/senior", *words, "--print_config"]) == 0
    first = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(first)
    assert main(["fit", "--config", str(tmp_path / "printed.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == first
    assert yaml.safe_load(first)["trainer"]["callbacks"][0]["init_args"]["skip"] == 5
    said = dict(line.split("  # ", 1) for line in map(str.strip, first.splitlines()) if "  # " in line)
    assert said["beta: 0.1"].startswith("strength of the pull to the reference")
    assert said["r: 16"] == "rank"
    assert said["skip: 5"] == "steps at the start that are not timed"
    assert "max_steps: 3" in first


def test_texts_that_need_quotes_and_lists_of_blocks_come_back() -> None:
    values = {"a": "x\ny: # no comment", "b": [{"k": [1, 2], "d": {"e": None}}, {"k": "on"}], "c": {}, "d": ["x", "{y}"], "1": True}
    assert yaml.safe_load(dump(values, lambda path: "said " * 60 if path[-1] in ("k", "b") else "short")) == values


def test_a_long_description_is_cut_and_loses_its_markup() -> None:
    assert short("The :class:`~a.B` of ``x``.\n\nMore.") == "The a.B of x"
    assert short("First one. " + "word " * 100) == "First one"
    assert short("Steps. Default: 5") == "Steps"
