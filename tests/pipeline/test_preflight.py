"""What would fail in a later stage is told before the first one spends anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from speedlit.cli import main
from speedlit.files import write_json
from speedlit.pipeline.configure import parse
from speedlit.pipeline.loop import stages
from speedlit.pipeline.preflight import ahead, check_journal
from speedlit.synthesis.journal import Event, Journal, journal_file
from tests.helpers import tiny_llama


def run(tmp_path: Path, *words: str) -> int:
    return main(["run", "--config", "smoke", "--root", str(tmp_path / "root"), *words])


def test_all_mistakes_of_later_stages_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--junior.set.trainer.max_stepz", "3", "--embedder.set.data.init_args.batchsize", "3", "--base", "./nowhere"]
    assert run(tmp_path, *words) == 2
    err = capsys.readouterr().err
    assert "junior: recipe: unknown key `trainer.max_stepz`" in err
    assert "embedder: recipe: unknown key `data.init_args.batchsize`" in err
    assert "base: model ./nowhere: no such folder" in err
    assert not (tmp_path / "root").exists()  # nothing was begun, and the root is not yet this config's


def test_a_base_without_tokenizer_is_told_before_anything_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny_llama(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    assert run(tmp_path, "--base", str(base)) == 2
    assert "has no tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "root").exists()


def test_only_what_will_be_trained_is_checked(tmp_path: Path) -> None:
    plain, every = parse("smoke").plain(), stages()
    assert ahead(every.values(), plain, tmp_path, None, None) == ["junior", "senior", "revisor", "embedder"]
    assert ahead(every.values(), plain, tmp_path, "seed", None) == []
    assert ahead(every.values(), plain, tmp_path, "senior", None) == ["junior", "senior"]


def test_a_run_without_topics_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", "speed", "--root", str(tmp_path / "root"), "--base", "./nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: topics.file is not set")  # before the base, which takes seconds to look at


def test_an_emptied_journal_stops_the_run_that_would_pay_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = (0, 1)
    root = tmp_path / "root"
    for name, calls in (("topics", 0), ("tasks", 40), ("seed", 300)):
        write_json(stages()[name].folder(root) / "manifest.json", {"ledger": {"calls": calls}})
    journal = Journal.for_shard(root, shard)
    journal.append([Event("k", "sent"), Event("k", "answered", raw="{}")])
    journal.close()
    check_journal(stages().values(), root)
    journal_file(root, shard).write_bytes(b"")
    assert run(tmp_path) == 2
    err = capsys.readouterr().err
    assert f"{journal_file(root, shard)} is empty" in err and "(tasks 40, seed 300)" in err and "put a copy of the journal in its place" in err
    journal_file(root, shard).unlink()  # as the sentence says
    check_journal(stages().values(), root)
    Journal.for_shard(root, (1, 4)).close()  # a job of an array begins without a row
    check_journal(stages().values(), root)
