"""The plan: every shipped recipe has one, the paper's numbers come out, nothing is asked of a paid teacher."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from speedlit.cli import main
from speedlit.pipeline.configure import parse
from speedlit.pipeline.yamlfiles import shipped
from speedlit.planning.plan import plan
from speedlit.planning.reach import wordings
from speedlit.planning.show import tables
from speedlit.planning.tokens import estimate, meter
from speedlit.records import Task
from speedlit.synthesis.stages.tasks import draw
from speedlit.synthesis.templates import load_set

LOOPS = [name for name in shipped() if "/" not in name]


@pytest.fixture(autouse=True)
def nobody_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A paid teacher could not be asked: no key, and no server behind the address."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)


def stages(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {stage["stage"]: stage for stage in found["stages"]}


@pytest.mark.parametrize("name", LOOPS)
def test_every_shipped_loop_has_a_plan(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [stage["stage"] for stage in found["stages"]] == [
        "tasks", "seed", "junior", "candidates", "preferences", "senior", "revisions", "revisor", "synthesis", "refinement", "embedder",
    ]  # fmt: skip
    by_name = stages(found)
    for training in ("junior", "senior", "revisor", "embedder"):
        assert by_name[training]["flops"] > 0
        assert by_name[training]["memory"]["total"] > by_name[training]["memory"]["weights"] > 0
    assert found["caveats"] and found["assumed"]
    assert not list(tmp_path.iterdir()), "a plan wrote something"


def test_speed_is_the_papers_45_thousand_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    found = plan(parse("speed"))
    by_name = stages(found)
    assert {name: by_name[name]["calls"] for name in ("seed", "preferences", "revisions")} == {"seed": 25_000, "preferences": 10_000, "revisions": 10_000}
    ours = found["total"]["without_brainstorming"]
    assert ours["calls"] == 45_000
    assert ours["tokens"] == pytest.approx(found["paper"]["tokens"], rel=0.15), "the assumed lengths stand for the paper's tokens per call"
    assert found["accepted"] == 920_000
    assert found["e5"]["for_as_many"]["calls"] == 920_000
    assert by_name["junior"]["note"].startswith("1,563 steps"), "25,000 at a batch of 16"
    assert by_name["embedder"]["note"].startswith("599 steps"), "920,000 at a batch of 1,536"
    price = parse("speed").prices["gpt-4o-2024-05-13"]
    seed = by_name["seed"]
    assert seed["usd"] == pytest.approx((seed["tokens_in"] * price.input + seed["tokens_out"] * price.output) / 1e6)
    assert by_name["tasks"]["calls"] is None, "brainstorming is unknown without topics, and said so"
    assert any("topics.file is not set" in line for line in found["warnings"])
    assert any("estimated" in line for line in found["assumed"]), "the teacher's tokenizer is not here"


def test_batches_and_a_judge_asked_twice_are_in_the_plan() -> None:
    live, other = stages(plan(parse("speed"))), stages(plan(parse("speed", ["--teacher.mode", "batch", "--judge_swap", "drop"])))
    share = parse("speed").prices["gpt-4o-2024-05-13"].batch
    assert share == 0.5
    for name, times in (("seed", 1), ("preferences", 2), ("revisions", 1)):
        assert other[name]["calls"] == times * live[name]["calls"]
        assert other[name]["usd"] == pytest.approx(share * times * live[name]["usd"])


def test_triplets_that_are_inspected_are_in_the_plan() -> None:
    live, other = stages(plan(parse("speed"))), stages(plan(parse("speed", ["--counts.inspected", "200"])))
    assert "dataset" not in live and other["dataset"]["calls"] == 200
    assert 0 < other["dataset"]["tokens_in"] / 200 < live["preferences"]["tokens_in"] / live["preferences"]["calls"], "two candidates instead of five"


def test_the_embedded_teacher_costs_what_prices_say() -> None:
    priced = plan(parse("smoke", ["--prices", "{embedded: {input: 5.0, output: 15.0}}", "--budget.usd", "0.01"]))
    assert plan(parse("smoke"))["total"]["usd"] == 0
    assert stages(priced)["seed"]["usd"] > 0
    assert any("budget.usd" in line for line in priced["warnings"]), "the run would stop"


def test_no_table_of_the_plan_has_too_many_columns_for_a_terminal() -> None:
    found = plan(parse("speed"))
    drawn = {table.title: table for table in tables(found)}
    assert all(len(table.head) <= 7 and all(len(row) == len(table.head) for row in table.rows) for table in drawn.values())
    junior = stages(found)["junior"]["memory"]["total"]
    assert [row[-1] for row in drawn["memory of training, GB"].rows if row[0] == "junior"] == [f"{junior / 1e9:,.2f}"]


def test_topics_make_brainstorming_known(tmp_path: Path) -> None:
    (tmp_path / "topics.txt").write_text("\n".join(f"Arts/Movies/Title{i}" for i in range(300)))
    found = plan(parse("speed", ["--topics.file", str(tmp_path / "topics.txt")]))
    assert stages(found)["tasks"]["calls"] == 4 * 300
    assert found["total"]["calls"] == 45_000 + 1_200
    assert any("retrieval task gets" in line or "classification task gets" in line or "task gets about" in line for line in found["warnings"])


def test_counts_that_the_topics_cannot_give_are_told_with_their_remedy(tmp_path: Path) -> None:
    (tmp_path / "topics.txt").write_text("Arts/Movies\nArts/Music\n")
    found = plan(parse("speed", ["--topics.file", str(tmp_path / "topics.txt")]))
    assert any("counts.synthesis asks for" in line and "s2s" in line and "give more topics" in line for line in found["warnings"])
    assert not [line for line in plan(parse("demo"))["warnings"] if "counts." in line], "the demo's counts are reached"


def test_the_bound_on_distinct_prompts_holds() -> None:
    """As many prompts as the bound says are never more than the stage itself can draw."""
    template = load_set("mini")["retrieval"]
    task = Task("t", "Top/Bells", "retrieval", "Find bells by their colour", "g", "train")
    most = wordings(template)
    found = draw([task], template, "seed", most + 1, 0, set(), set())
    made = 0
    with pytest.raises(Exception, match="give only"):
        for _ in found:
            made += 1
    assert 0.5 * most <= made <= most


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budget.calls", "30000"], "budget.calls is 30000: the run will stop in the stage preferences"),
        (["--budget.usd", "50"], "budget.usd is 50: the run will stop in the stage seed"),
        (["--budget.tokens", "20000000"], "budget.tokens is 2e+07: the run will stop in the stage preferences"),
        (["--plan.memory_gb", "16"], "junior needs about 20 GB on one device"),
        (["--teacher.model", "own"], "prices has no 'own'"),
    ],
)
def test_what_stands_in_the_way_is_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", "speed", *words]) == 0
    assert said in capsys.readouterr().out


def test_a_budget_that_suffices_is_no_warning() -> None:
    found = plan(parse("speed", ["--budget.calls", "45000", "--budget.usd", "1000"]))
    assert not [line for line in found["warnings"] if "budget" in line]


def test_a_local_tokenizer_counts_and_another_is_estimated() -> None:
    text = "Find the repair instruction that removes the symptom of a machine."
    real = meter("speedlit:base")
    assert real.exact and "speedlit:base" in real.source
    assert real.count(text) != len(text)
    assert not meter("gpt-4o-2024-05-13").exact
    assert 11 <= estimate(text) <= 17, "12 tokens in byte-pair tokenizers of large models"


def test_help_and_plan_import_no_torch(tmp_path: Path) -> None:
    code = "import sys; from speedlit.cli import main; main(['plan', '--config', 'speed', '--json']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
