"""The paper's run as the pages start it, and what stands in for what no test has: a teacher on loopback, models of a million parameters for those of 8B."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import speedlit
from speedlit.files import read_jsonl
from speedlit.offline.server import chat
from speedlit.offline.teacher import Teacher
from tests.blocks import Block, run
from tests.synthesis.batchserver import BatchServer
from tests.synthesis.server import Fault

NAMES = ("meta-llama/Meta-Llama-3-8B", "mistralai/Mistral-7B-v0.1")
HOST = "https://host/v1"  # of the pages
FEW = "--counts.seed 2000 --counts.root 100 --counts.synthesis 500 --counts.validation 10 --counts.test 20 --until seed"
FIRST = ("Arts", "Science", "Sports", "Health", "Society", "Business", "Games", "Home", "Travel", "News")
SECOND = ("Music", "History", "Tools", "People", "Places", "Methods", "Food", "Law", "Water", "Work")
BASE = Path(speedlit.__file__).parent / "offline/base"


def stand_ins(cache: Path) -> None:
    """Put the packaged base into a hub cache under the names of the paper's models."""
    for name in NAMES:
        folder, commit = cache / "hub" / f"models--{name.replace('/', '--')}", "0" * 40
        shutil.copytree(BASE, folder / "snapshots" / commit)
        (folder / "refs").mkdir()
        (folder / "refs/main").write_text(commit)


def topics(path: Path, count: int) -> None:
    """So many topics; the paper's counts need more than 50,000."""
    path.write_text("".join(f"{FIRST[i % 10]}/{SECOND[i // 10 % 10]}/Place_{i}\n" for i in range(count)), encoding="utf-8")


@contextmanager
def teacher(env: dict[str, str]) -> Iterator[str]:
    """The URL of a ``speedlit teacher serve`` of its own."""
    process = subprocess.Popen([sys.executable, "-m", "speedlit", "teacher", "serve", "--port", "0"], stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait(30)


def rehearse(block: Block, place: Path, env: dict[str, str], url: str, stage: str = "tasks", least: int = 1000, few: bool = False) -> None:
    """Run a block as it stands, but for the teacher's address. Ctrl-C once there are so many answers and ``stage`` is under way: the whole takes GPUs for days.

    ``few`` adds the counts of a first try, which end with the teacher's records.
    """
    text = block.text.replace(HOST, url).strip() + (f" {FEW}\n" if few else "\n")
    root, end = place / "runs/speed", time.monotonic() + 600
    with (place / "said.txt").open("w") as said:
        words, env = ["bash", "-euo", "pipefail", "-c", text], {**env, "OPENAI_BASE_URL": url}
        process = subprocess.Popen(words, cwd=place, env=env, stderr=said, start_new_session=True, preexec_fn=hears_ctrl_c)
        while process.poll() is None and answers(root, stage) < least and time.monotonic() < end:
            time.sleep(0.2)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        try:
            code = process.wait(120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    heard = (place / "said.txt").read_text(encoding="utf-8")
    assert code == 1 and "interrupted; the same command goes on" in heard and "Traceback" not in heard, f"{text}ended with {code}\n{heard[-3000:]}"
    assert least <= answers(root, stage), heard


def hears_ctrl_c() -> None:
    """In the background a shell's children ignore it, and so would theirs."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def first_try(block: Block, place: Path, env: dict[str, str], url: str) -> None:
    """Run a block with the counts of a first try, to its end."""
    run(Block("bash", block.text.replace(HOST, url).strip() + f" {FEW}"), place, {**env, "OPENAI_BASE_URL": url})
    assert sum(1 for _ in read_jsonl(place / "runs/speed/stages/03-seed/records.jsonl")) > 1700


def answers(root: Path, stage: str) -> int:
    """How many answers the journal has once a stage has begun; 0 before."""
    if not any((root / "stages").glob(f"??-{stage}")) or not (root / "journal.sqlite").exists():
        return 0
    with closing(sqlite3.connect(f"file:{root / 'journal.sqlite'}?mode=ro", uri=True)) as journal:
        known = journal.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'attempts'").fetchone()[0]
        return int(journal.execute("SELECT COUNT(*) FROM attempts WHERE event = 'answered'").fetchone()[0]) if known else 0


class Batches(BatchServer):
    """The embedded teacher behind live requests and the Batch API, on one address."""

    def __init__(self) -> None:
        super().__init__(lambda body, _: Fault(body=json.dumps(chat(self.teacher, body))), polls=0)
        self.teacher = Teacher()

    def _route(self, method: str, path: str, query: str, data: bytes) -> Fault:
        if (method, path) == ("POST", "/chat/completions"):
            return Fault(body=json.dumps(chat(self.teacher, json.loads(data))))
        return super()._route(method, path, query, data)
