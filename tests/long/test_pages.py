"""The blocks of README and docs that take minutes, or a server that is paid: as they stand, but for the address of the server."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from speedlit.files import read_json, read_jsonl
from tests.blocks import ROOT, Block, blocks, run, wrapper
from tests.long import LONG
from tests.long.paper import Batches, answers, first_try, rehearse, stand_ins, teacher, topics

pytestmark = LONG
PAID = "--config speed --topics"  # what the blocks with a teacher have in common


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the topics that the pages take for granted."""
    root = tmp_path_factory.mktemp("pages")
    (root / "tests").symlink_to(ROOT / "tests")
    (root / "docs").mkdir()
    topics(root / "topics.txt", 60_000)
    topics(root / "few.txt", 400)
    stand_ins(root / "hub")
    wrapper(root / "bin/speedlit", sys.executable, "-m", "speedlit")
    wrapper(root / "bin/python", sys.executable)
    return root


@pytest.fixture(scope="module")
def env(place: Path) -> dict[str, str]:
    keep = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    own = {
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(place / "hub"),
    }
    return {**keep, **own}


@pytest.fixture(scope="module")
def url(env: dict[str, str]) -> Iterator[str]:
    with teacher(env) as address:
        yield address


def long(page: str, part: str = "") -> list[Block]:
    """The blocks of a page that are marked long and hold ``part``."""
    return [block for block in blocks(ROOT / page) if block.mark == "long" and part in block.text]


@pytest.fixture
def begun(place: Path) -> Iterator[Path]:
    """The folder without a run."""
    yield place
    shutil.rmtree(place / "runs", ignore_errors=True)


def test_the_paper_s_run_asks_a_server_of_your_own(begun: Path, env: dict[str, str], url: str) -> None:
    rehearse(long("docs/teacher.md", PAID)[0], begun, env, url)


def test_what_was_asked_live_is_not_in_a_batch(begun: Path, env: dict[str, str]) -> None:
    """The Batch API is handed what a live run has left, and both end up in one journal."""
    live, batch = (Block("bash", block.text.replace("topics.txt", "few.txt")) for block in long("docs/teacher.md", PAID))
    with Batches() as server:
        rehearse(live, begun, env, server.url, "seed", 1700, few=True)
        before = answers(begun / "runs/speed", "seed")
        first_try(batch, begun, {**env, "OPENAI_API_KEY": "..."}, server.url)  # the block leaves the key to the environment
        assert 1700 <= before < 3600, "2,000 seeds come after 1,600 questions for tasks"
        assert sum(server.processed.values()) == answers(begun / "runs/speed", "seed") - before > 0
    assert read_json(begun / "runs/speed/stages/03-seed/manifest.json")["ledger"]["notes"]["mode"] == "batch"


def test_a_model_of_another_server(begun: Path, env: dict[str, str], url: str) -> None:
    (block,) = long("docs/own.md", PAID)
    rehearse(block, begun, env, url)
    with closing(sqlite3.connect(begun / "runs/speed/journal.sqlite")) as journal:
        raw = journal.execute("SELECT raw FROM attempts WHERE event = 'answered' LIMIT 1").fetchone()[0]
    assert '"model": "my-model"' in zlib.decompress(raw).decode(), "the server was asked for it"


def test_a_task_kind_beside_the_papers(begun: Path, env: dict[str, str], url: str) -> None:
    """As it stands, and then as far as the prompts of the new kind."""
    for block in blocks(ROOT / "docs/task-kinds.md"):
        if block.mark == "long":
            rehearse(block, begun, {**env, "OPENAI_API_KEY": "..."}, url)
            shutil.rmtree(begun / "runs/speed")
            block = Block("bash", block.text.replace("topics.txt", "few.txt"))
            rehearse(block, begun, {**env, "OPENAI_API_KEY": "..."}, url, "seed", 2100, few=True)
        else:
            run(block, begun, env)
    kinds = Counter(row["kind"] for row in read_jsonl(begun / "runs/speed/stages/02-tasks/prompts.jsonl") if row["use"] == "seed")
    assert kinds["dialogue"] == pytest.approx(2000 * 3 / 26, abs=1), "its share of the data beside 7, 7, 7, 1 and 1"


@pytest.mark.parametrize("page", ["docs/benchmarks.md", "docs/scaling.md"])
def test_a_measurement_runs(page: str, place: Path, env: dict[str, str]) -> None:
    """It says figures; what they are, on a machine that others use, nobody asks."""
    (block,) = long(page)
    all_cores = {name: value for name, value in env.items() if name != "OMP_NUM_THREADS"}
    assert re.search(r"\d", run(block, place, all_cores, timeout=1200))
