"""The first hour with nothing left out, and what the pages show of a finished demo. The demo runs once, for all of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from speedlit.files import read_json, read_jsonl
from tests.blocks import ROOT, Block, blocks, run
from tests.long import LONG
from tests.long.paper import first_try, rehearse, stand_ins, teacher, topics
from tests.test_first_hour import QUICKSTART, check_hour, fresh
from tests.test_loop import STAGES

pytestmark = LONG


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], list[str]]:
    """The folder in which every block of the quick start has run, its environment, and what was printed."""
    place, env = fresh(tmp_path_factory.mktemp("hour"))
    return place, env, [run(block, place, env, timeout=1800) for block in blocks(QUICKSTART)]


def test_the_first_hour_with_the_demo(hour: tuple[Path, dict[str, str], list[str]]) -> None:
    place, _, printed = hour
    assert [block.why for block in blocks(QUICKSTART) if block.mark == "not run"] == []
    check_hour(place, printed)
    assert sum("record quality" in text for text in printed) == 1, "the demo's tables"


def test_the_demos_report_is_whole_and_small(hour: tuple[Path, dict[str, str], list[str]]) -> None:
    """Every stage, every table, every record; in one file that a mail can carry."""
    root = hour[0] / "runs/demo"
    summary = read_json(root / "summary.json")
    assert set(summary["stages"]) == set(STAGES)
    assert {"junior", "senior", "control", "refined"} <= set(summary["quality"]["sources"])
    assert {"untrained", "embedder"} <= set(summary["embedders"]["models"])
    assert sum(1 for _ in read_jsonl(root / "stages/03-seed/records.jsonl")) > 1800
    assert (root / "report.html").stat().st_size < 5_000_000
    page = (root / "report.html").read_text(encoding="utf-8")
    assert all(f">{stage}<" in page for stage in STAGES if stage != "report")
    assert all(f'<section id="{part}"' in page for part in ("loop", "gates", "quality", "curves", "scores", "costs", "records"))
    assert "<svg" in page and "<table" in page and "http" not in page.replace("http-equiv", "")


def test_the_readme_from_first_to_last(hour: tuple[Path, dict[str, str], list[str]]) -> None:
    """In the same folder: the demo that it runs is finished there, and the study has its data."""
    place, env, _ = hour
    (place / "tests").symlink_to(ROOT / "tests")
    stand_ins(Path(env["HOME"]) / ".cache/huggingface")
    with teacher(env) as url:
        for block in blocks(ROOT / "README.md"):
            if "--config speed --topics" in block.text:
                topics(place / "topics.txt", 60_000)
                rehearse(block, place, env, url)
                shutil.rmtree(place / "runs/speed")
                topics(place / "topics.txt", 400)
                first_try(block, place, env, url)
            else:
                run(block, place, env, timeout=1800)
    found = read_json(place / "runs/demo/study/scaling/summary.json")
    assert (found["kind"], found["source"], found["last"]) == ("scaling", "refined", pytest.approx(2000, rel=0.2)) and found["verdict"]


def test_the_recipes_table_of_both_runs(hour: tuple[Path, dict[str, str], list[str]]) -> None:
    place, env, _ = hour
    run(Block("bash", "speedlit run --config smoke"), place, env)
    (block,) = [block for block in blocks(ROOT / "docs/recipes.md") if block.mark]
    printed = run(block, place, {**env, "PYTHONPATH": f"{env['PYTHONPATH']}:{ROOT}"})
    assert "| smoke | embedder | 8 |" in printed and "| demo | embedder | 160 |" in printed
