"""README and docs tell the truth: every block is run, or read by the program's own parser, and the site builds without a warning."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.docs.recipes import rows, table
from speedlit.files import write_json
from tests.blocks import PAGES, ROOT, Block, blocks, check, check_command, run, wrapper

FIRST_HOUR = "quickstart.md"  # tests/test_first_hour.py runs it
RUN = [page for page in PAGES if page.name != FIRST_HOUR and any(not block.mark for block in blocks(page))]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with what the pages take for granted: ``topics.txt``, a package of one's own, the repository's ``tests``, and a ``speedlit`` on the path."""
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    shutil.copy(ROOT / "tests/data/topics.txt", tmp_path)
    wrapper(tmp_path / "bin/speedlit", sys.executable, "-m", "speedlit")
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("import lightning as L\n\n\nclass Watch(L.Callback):\n    pass\n")
    (package / "modules.py").write_text("from speedlit.modules.sft import SFTModule\n\n\nclass RewardModule(SFTModule):\n    pass\n")
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_blocks_run_in_their_order(page: Path, place: Path) -> None:
    """As written, but for the full demo, which stops after its tasks here (tests/long runs it whole, and the blocks that take minutes)."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI_")}
    env = {**keep, "PATH": f"{place / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for block in blocks(page):
        if not block.mark:
            text = re.sub(r"(speedlit run --config demo)(?= *(#|$))", r"\1 --until tasks", block.text, flags=re.MULTILINE)
            run(Block(block.language, text), place, env)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_not_run_says_why_and_exists(page: Path, place: Path) -> None:
    for block in blocks(page):
        assert block.language in ("bash", "python", "yaml"), f"{page.name}: a block of {block.language} that nothing checks"
        if block.mark:
            check(block, place)
        if block.mark == "not run":
            named = re.findall(r"tests/[\w/]+\.py", block.why)
            assert named and all((ROOT / name).is_file() for name in named), f"{page.name}: which test runs what can be run of it? {block.why}"


def test_commands_stand_in_fenced_blocks() -> None:
    """Only those are looked at; README's first two lines are make's (tests/test_readme.py)."""
    for page in PAGES:
        lines = [line for line in page.read_text(encoding="utf-8").splitlines() if re.match(r" {4}(speedlit|python|sbatch|pip|[A-Z_]+=\S+ speedlit) ", line)]
        inside = "".join(block.text for block in blocks(page))
        assert not [line for line in lines if line not in inside], page.name


def test_a_wrong_option_or_key_in_a_block_is_found(place: Path) -> None:
    for line in ("speedlit run --config speed --untill seed", "speedlit run --config speed --teacher.modle x", "speedlit mine a --modell b", "make nothing"):
        with pytest.raises((AssertionError, subprocess.CalledProcessError)):
            check_command(line.split(), place)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Dead links, pages that stand in no menu and docstrings that can't be read are warnings, and warnings are errors."""
    pytest.importorskip("mkdocstrings", reason="pip install 'speedlit[docs]'")
    words = ["build", "--strict", "--quiet", "--config-file", str(ROOT / "scripts/docs/mkdocs.yml"), "--site-dir", str(tmp_path / "site")]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([sys.executable, "-m", "mkdocs", *words], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    for path in (tmp_path / "site").rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'(?:<script|<link(?! rel="canonical")|<img)[^>]*(?:src|href)="https?:', text), f"{path.name} fetches something"
    assert "log pi(y|x)" in (tmp_path / "site/reference/losses.html").read_text(encoding="utf-8"), "docstrings are in the reference"


def test_the_recipes_table_comes_from_a_run(tmp_path: Path) -> None:
    fit = {"out": ".", "steps": 76, "seconds": 9.4, "final": {"loss": 0.7753}}
    summary = {
        "stages": {"report": {}, "seed": {"seconds": 30.0}, "junior": {"seconds": 60.0, "notes": {"fits": [fit]}}},
        "costs": {"accepted": 114, "total": {"calls": 1020, "tokens": 135226, "usd": 0}},
        "quality": {"sources": {"junior": {"good": {"mean": 0.25}}}},
        "embedders": {"models": {"untrained": {"A": 0.1, "B": 0.2}, "embedder": {"A": 0.3, "B": 0.5}}},
    }
    write_json(tmp_path / "summary.json", summary)
    write_json(tmp_path / "run.json", {"config": {"name": "smoke"}})
    first, fits = rows(tmp_path, "1.5 GB")
    assert first == ["smoke", "1.5", "1.5 GB", "1,020", "135,226", "0.00", "114", "0.250, -, -", "15.0, 40.0"]
    assert fits == [["smoke", "junior", "76", "9", "0.775"]]
    assert table(("a", "b"), [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
