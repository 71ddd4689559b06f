"""The key is in no file of a run, no log and no error, though the server repeats it in every way it can."""

from __future__ import annotations

import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

from speedlit.synthesis.journal import Journal, journal_file
from tests.synthesis import scripted
from tests.synthesis.server import Fault, Server

KEY = "sk-proj/very+secret=0123456789"  # with what JSON and URLs write otherwise
SPELLINGS = (KEY, KEY.replace("/", "\\/"), "sk-proj%2Fvery%2Bsecret%3D0123456789")
RECIPE = """
name: secrets
base: speedlit:base
prompts: paper
tasks: {per_topic: 2, test: 0.25, validation: 0.125}
counts: {seed: 30, root: 20, candidates: 3, preferences: 20, revisions: 25, synthesis: 24, validation: 0, test: 8}
teacher: {model: m, concurrency: 8, retries: 8, max_tokens: 200}
comparison: {sources: [], seeds: 0}
"""


def leaky(server: Server) -> Any:
    """Healthy answers of the scripted teacher, half of them after something that holds the key."""

    def answer(body: dict[str, Any], n: int) -> str | Fault:
        key = re.search(r"[Aa]uthorization: Bearer (\S+)", server.heads)[1]
        text = body["messages"][-1]["content"]
        spelling = random.Random(f"{text}{n}").choice([key, key.replace("/", "\\/"), SPELLINGS[2]])
        error = json.dumps({"error": {"message": f"{spelling} is slow", "code": spelling}})
        faults = [
            Fault(status=500, body=error), Fault(status=429, body=error, headers={"retry-after": "0"}), Fault(body=f'{{"choices": [{{"key": "{spelling}'),
            Fault(body=f"<html>{spelling}</html>"), Fault(status=503, body=spelling),
        ]  # fmt: skip
        if n == 0 and random.Random(text).random() < 0.5:
            return random.Random(text + "?").choice(faults)
        said = scripted.answer(body, n)
        return said.replace("I'm sorry", f"Your key is {spelling}. I'm sorry")

    return answer


def speedlit(tmp_path: Path, root: str, url: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "topics.txt").write_text("\n".join(scripted.TOPICS))
    words = ["run", "--config", str(tmp_path / "recipe.yaml"), "--root", str(tmp_path / root), "--topics", str(tmp_path / "topics.txt"), "--until", "seed"]
    env = {**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url, "OPENAI_LOG": "debug", "SPEEDLIT_DEBUG": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-m", "speedlit", *words], capture_output=True, text=True, timeout=200, env=env)


def test_no_file_no_log_and_no_error_of_a_run_holds_the_key(tmp_path: Path) -> None:
    with Server(lambda body, n: "") as server:
        server.answer = leaky(server)
        done = speedlit(tmp_path, "root", server.url)
        assert done.returncode == 0, done.stderr[-3000:]
        server.answer = lambda body, n: Fault(status=401, body=json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}))
        refused = speedlit(tmp_path, "other", server.url)
        assert refused.returncode == 1 and "OPENAI_API_KEY" in refused.stderr
    assert "HTTP Request: POST" in done.stderr and "refuses this client" in refused.stderr, "the libraries' own logs and tracebacks are on"
    journal = Journal(journal_file(tmp_path / "root"))
    counts = journal.counts()
    journal.close()
    assert counts["failed"] > 5 and counts["damaged"] > 5, "the server has repeated the key in errors and in broken answers"
    raw = b"".join(path.read_bytes() for path in (tmp_path / "root").rglob("*.jsonl"))
    assert b"Your key is [key]" in raw, "and in answers"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8
    texts = {str(path): path.read_bytes() for path in files} | {"output": (done.stdout + done.stderr + refused.stdout + refused.stderr).encode()}
    texts |= {f"{path} unpacked": unpacked(path) for path in files if path.suffix == ".sqlite"}
    for where, text in texts.items():
        assert not any(spelling.encode() in text for spelling in SPELLINGS), where


def unpacked(path: Path) -> bytes:
    """Every raw answer of a journal as it came."""
    db = sqlite3.connect(path)
    out = b"\n".join(zlib.decompress(raw) for (raw,) in db.execute("SELECT raw FROM attempts WHERE raw IS NOT NULL"))
    db.close()
    return out
