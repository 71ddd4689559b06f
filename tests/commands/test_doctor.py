"""`speedlit doctor`: it tells what the machine lacks and what a config wants of it, and only a config that can't run makes it fail."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from speedlit.cli import main
from speedlit.pipeline.machine import BAD, OK, disk, reach
from speedlit.pipeline.suited import suited
from tests.helpers import sft_rows


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_API_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)


def test_a_config_that_runs_here_is_told_after_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--config", "demo"]) == 0
    out = capsys.readouterr().out
    for name in ("Python", "cores", "memory", "torch", "bfloat16", "bitsandbytes", "Slurm", "disk", "/dev/shm", "teacher"):
        assert f" {name} " in out, name
    assert "stages to train: junior senior revisor embedder" in out
    assert out.rstrip().endswith("it can run here")


def test_what_a_run_lacks_is_told_with_its_remedy(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    words = ["--junior.set.trainer.max_stepz", "3", "--base", "./nowhere", "--sampling.processes", "500", "--senior.set.trainer.num_nodes", "2"]
    assert main(["doctor", "--config", "demo", *words]) == 1
    out = capsys.readouterr().out.split("demo on it")[1]
    for said in ("did you mean `trainer.max_steps`", "./nowhere", "127.0.0.1:9/v1 does not answer", "--sampling.processes ", "srun"):
        assert said in out, said
    assert "it can't run here" in out


def test_mistakes_in_the_file_itself_are_told_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("nam: x\ncounts: {seed: many}\n")
    assert main(["doctor", "--config", "run.yaml"]) == 1
    out = capsys.readouterr().out
    assert "run.yaml:1" in out
    assert "run.yaml:2" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_fit_is_looked_at_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from speedlit.data.shards import write_shards

    write_shards(sft_rows(4), tmp_path / "shards", "sft")
    words = ["doctor", "--config", "fit/demo/junior", "--data.shards"]
    assert main([*words, "shards"]) == 0
    assert main([*words, "elsewhere", "--trainer", "trainer/gpu.yaml"]) == 1
    out = capsys.readouterr().out.rsplit("fit/demo/junior on it")[-1]
    assert "speedlit shard SOURCE --to elsewhere" in out
    assert "there is no GPU" in out
    assert "trainer/cpu.yaml" in out


def test_four_bits_are_only_promised_where_they_work(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--model.adapter", "adapter/qlora.yaml"]
    marks = {finding.name: finding for finding in suited(["fit/demo/junior"], words)}
    assert "QLoRA" not in marks
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    marks = {finding.name: finding for finding in suited(["fit/demo/junior"], words)}
    assert marks["QLoRA"].mark == BAD
    assert "LoRA" in marks["QLoRA"].remedy


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """One that wants a key, and what headers it was sent."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(dict(self.headers))
            self.send_error(401)

        def log_message(self, *_: object) -> None:
            pass

    listening = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}/v1", seen
    listening.shutdown()
    listening.server_close()


def test_a_server_is_asked_without_the_key(server: tuple[str, list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch) -> None:
    url, seen = server
    assert reach("teacher", url).mark == BAD
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key")
    found = reach("teacher", url)
    assert found.mark == OK
    assert "very-secret" not in str(seen) + str(found)
    assert reach("teacher", "ftp://x").mark == BAD


def test_a_folder_to_be_made_is_judged_by_the_one_above(tmp_path: Path) -> None:
    assert str(tmp_path) in disk(tmp_path / "a" / "b").text


def test_words_without_a_config_are_refused() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--trainer.devices", "2"])
    assert caught.value.code == 2
