"""Progress: a live view on a terminal, few plain lines in a pipe, figures that mean what they say."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from speedlit import progress
from speedlit.callbacks.progress import FitProgress
from speedlit.context import Context
from speedlit.progress import Progress, clock, say
from speedlit.synthesis.stages.common import standing

WORK = """
import sys, time
from speedlit.progress import Progress, say
with Progress("whole run", 3, "stages", every=float("inf"), even=False) as run:
    run.advance(note="12 calls, $0.34")
    run.draw()
    with Progress("seed", 2000, "answers") as seed:
        for i in range(1500):
            seed.advance(note=lambda: "77 accepted, 8 rejected, $0.05")
            if i == 700:
                say("a notice")
            if i % 500 == 0:
                time.sleep(0.3)
print("the end", file=sys.stderr)
print("a result")
"""


def test_a_terminal_gets_one_live_view(tmp_path: Path) -> None:
    here, there = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "TERM": "xterm", "COLUMNS": "120"}
    with (tmp_path / "out").open("w") as out:
        done = subprocess.Popen([sys.executable, "-c", WORK], stdout=out, stderr=there, env=env)
    os.close(there)
    shown = b""
    try:
        while part := os.read(here, 65536):
            shown += part
    except OSError:  # how a pseudo-terminal ends on Linux
        pass
    os.close(here)
    assert done.wait() == 0
    text = shown.decode()
    for said in ("whole run", "1/3 stages", "12 calls, $0.34", "/2,000 answers", "/s, ", " left, 77 accepted, 8 rejected, $0.05", "a notice", "\x1b["):
        assert said in text, said
    assert text.rstrip().endswith("the end")
    assert (tmp_path / "out").read_text() == "a result\n"


def test_a_pipe_gets_plain_lines_and_few(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("fit", 400, "steps", start=100) as bar:
        for i in range(200):
            now[0] += 0.25
            bar.advance(note=lambda i=i: f"loss {i}")  # type: ignore[misc]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "  fit: 140/400 steps (4.0/s, 1:05 left, loss 39)", "what an earlier attempt did is no speed of this one"
    assert len(lines) == 5, "one in ten seconds"
    with Progress("evaluation", 5, "models") as bar:
        now[0] += 90
        bar.advance()
    assert capsys.readouterr().err == "  evaluation: 1/5 models (1:30 each, 6:00 left)\n"
    assert "\x1b" not in "".join(lines)


def test_a_notice_is_said_once_and_by_one_process(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_said", set())
    for text in ("one", "two", "one"):
        say(text)
    monkeypatch.setattr(progress, "_muted", True)
    say("three")
    assert capsys.readouterr().err == "  one\n  two\n"


def test_seconds_are_written_for_a_person() -> None:
    assert [clock(s) for s in (4.2, 59.4, 61, 3600 * 2 + 187)] == ["4 s", "59 s", "1:01", "2:03:07"]


def test_a_fit_shows_tokens_and_the_share_of_the_machine() -> None:
    bar = FitProgress()
    module = torch.nn.Module()
    module.model, module.device, module.figures = torch.nn.Sequential(torch.nn.Linear(8, 8)), torch.device("cpu"), {"loss": 1.5}  # type: ignore[assignment]
    assert bar.note(module, 2) == "loss 1.5000", "before anything was timed"
    bar._begin, bar._now, bar._tokens = 10.0, 12.0, 5_000.0
    assert bar.note(module, 2) == "loss 1.5000, 5,000 tokens/s, MFU 0%"


def test_a_stage_shows_what_its_answers_cost(tmp_path: Path) -> None:
    config = {"teacher": {"model": "m"}, "prices": {"m": {"input": 2.0, "output": 10.0, "batch": 0.5}}}
    ctx = Context("seed", tmp_path, {}, config, tmp_path, lambda role: None)  # type: ignore[arg-type,return-value]
    assert standing(ctx) == ""
    ctx.ledger.calls, ctx.ledger.tokens_in, ctx.ledger.tokens_out, ctx.ledger.accepted = 3, 1_000_000, 100_000, 1_234
    ctx.ledger.reject("parse", 5)
    assert standing(ctx) == "1,234 accepted, 5 rejected, $3.00"
    ctx.ledger.notes["mode"] = "batch"
    assert standing(ctx) == "1,234 accepted, 5 rejected, $1.50"
