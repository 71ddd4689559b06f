"""The cost ledger by hand; and a run that its budget stops and a higher one lets go on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from speedlit.cli import main
from speedlit.files import read_json
from speedlit.pipeline.configure import parse
from speedlit.pipeline.costs import CAVEATS, ledger
from speedlit.report.tables import bracket, closing, cost_table, verdict
from speedlit.synthesis.journal import Event, Journal

CONFIG = {"teacher": {"model": "m", "embedded": None, "base_url": None}, "prices": {"m": {"input": 2.0, "output": 10.0, "batch": 0.5}}}


def stage(seconds: float = 1.0, calls: int = 0, tokens_in: int = 0, tokens_out: int = 0, **notes: object) -> dict[str, object]:
    counts = {"calls": calls, "cached": 0, "generated": 0, "tokens_in": tokens_in, "tokens_out": tokens_out, "accepted": 0}
    return {"seconds": seconds, **counts, "rejected": {}, "notes": notes}


STAGES = {
    "topics": stage(0.5),
    "tasks": stage(9.0, calls=40, tokens_in=4_000, tokens_out=1_000),
    "seed": stage(9.0, calls=100, tokens_in=30_000, tokens_out=10_000),
    "junior": stage(60.0),
    "candidates": stage(30.0, tokens_in=9_999, tokens_out=9_999),  # of a local model: no money, but seconds
    "preferences": stage(9.0, calls=50, tokens_in=60_000, tokens_out=5_000),
    "revisions": stage(9.0, calls=50, tokens_in=40_000, tokens_out=15_000, mode="batch"),
    "dataset": stage(10.0, refined={"records": 200, "triplets": 150}),
    "embedder": stage(1_000.0),  # reads the data, is no part of their cost
}


def test_the_ledger_by_hand(tmp_path: Path) -> None:
    found = ledger(STAGES, CONFIG, tmp_path)
    assert found["accepted"] == 200
    seed = found["stages"]["seed"]
    assert (seed["calls"], seed["tokens"], seed["usd"], seed["local_seconds"]) == (100, 40_000, pytest.approx(0.06 + 0.1), 0.0)
    assert seed["per_accepted"] == {"calls": 0.5, "tokens": 200.0, "usd": pytest.approx(0.0008), "local_seconds": 0.0}
    assert found["stages"]["revisions"]["usd"] == pytest.approx((0.08 + 0.15) / 2), "half the price in batches"
    assert found["stages"]["candidates"]["per_accepted"] == {"calls": 0.0, "tokens": 0.0, "usd": 0.0, "local_seconds": 0.15}
    total = found["total"]
    assert (total["calls"], total["tokens"], total["local_seconds"]) == (240, 165_000, 100.5)
    assert total["usd"] == pytest.approx(0.018 + 0.16 + 0.17 + 0.115)
    assert total["per_accepted"]["calls"] == pytest.approx(sum(row["per_accepted"]["calls"] for row in found["stages"].values()))
    assert found["without_brainstorming"]["calls"] == 200
    assert "embedder" not in found["stages"]
    assert found["e5"]["for_as_many"]["calls"] == 200
    assert found["e5"]["for_as_many"]["tokens"] == 200 * 360
    assert found["e5"]["for_as_many"]["usd"] == pytest.approx(72_000 * (134_000 * 2 + 31_000 * 10) / 165_000 / 1e6)
    assert found["share_of_e5"]["total"] == {"calls": 240 / 200, "tokens": 165_000 / 72_000}
    assert found["share_of_e5"]["without_brainstorming"]["calls"] == 1.0
    assert found["paper"]["per_accepted"]["calls"] == pytest.approx(45_000 / 920_415)
    assert found["caveats"] == CAVEATS
    assert any("brainstorming" in line for line in CAVEATS) and any("English" in line for line in CAVEATS)


def test_triplets_that_were_inspected_are_the_datasets_calls(tmp_path: Path) -> None:
    inspected = {**STAGES, "dataset": stage(10.0, calls=10, tokens_in=2_000, tokens_out=500, refined={"records": 200})}
    row = ledger(inspected, CONFIG, tmp_path)["stages"]["dataset"]
    assert (row["calls"], row["tokens"], row["usd"], row["local_seconds"]) == (10, 2_500, pytest.approx(0.009), 10.0)


def test_what_was_paid_beyond_the_answers_in_use_is_a_row_of_its_own(tmp_path: Path) -> None:
    with_teacher = {"seed": stage(9.0, calls=2, tokens_in=20, tokens_out=10), "dataset": STAGES["dataset"]}
    journal = Journal(tmp_path / "journal.sqlite")
    for key in ("a", "b"):
        journal.append([Event(key, "sent", tokens_in=100, tokens_out=50, detail="m"), Event(key, "answered", 200, 1.0, 10, 5)])
    journal.append([Event("c", "sent", tokens_in=100, tokens_out=50, detail="m")])  # lost in a crash
    journal.close()
    found = ledger(with_teacher, CONFIG, tmp_path)
    assert (found["other"]["calls"], found["other"]["tokens"], found["other"]["usd"]) == (1, 150, pytest.approx((100 * 2 + 50 * 10) / 1e6))
    assert found["total"]["calls"] == 3
    table = cost_table(found)
    assert [row[0] for row in table.rows][-5:] == ["other attempts", "all", "without brainstorming", "the paper (its Table 5)", "E5-Mistral, for as many"]
    assert all(len(row) == len(table.head) for row in table.rows)
    assert "0.015 times the calls" in table.note, "3 calls for 200 samples"
    assert all(line in table.note for line in CAVEATS), "the caveats are printed with the figures"


def test_without_a_price_money_is_unknown_and_before_the_dataset_nothing_is_divided(tmp_path: Path) -> None:
    found = ledger({"seed": STAGES["seed"]}, {**CONFIG, "prices": {}}, tmp_path)
    assert found["accepted"] is None
    assert found["stages"]["seed"]["usd"] is None and found["total"]["usd"] is None
    assert found["stages"]["seed"]["per_accepted"] is None
    assert closing({"stages": {"seed": STAGES["seed"]}, "costs": found})[0].endswith("tokens"), "neither money nor a share of E5's calls yet"


def test_a_run_stops_before_its_budget_and_goes_on_with_a_higher_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    words = ["run", "--config", "smoke", "--root", str(tmp_path / "r"), "--until", "tasks"]
    assert main([*words, "--budget.calls", "50"]) == 1
    err = capsys.readouterr().err
    assert "50 of 120 requests of this stage are answered" in err
    assert "Raise budget.calls (to about 120)" in err and "Traceback" not in err
    assert main([*words, "--budget.calls", "120"]) == 0
    journal = Journal(tmp_path / "r" / "journal.sqlite")
    counts = journal.counts()
    journal.close()
    assert (counts["sent"], counts["answered"]) == (120, 120), "nothing was asked twice"
    costs = read_json(tmp_path / "r" / "summary.json")["costs"]
    assert (costs["stages"]["tasks"]["calls"], costs["total"]["calls"], costs["stages"]["tasks"]["usd"]) == (120, 120, 0.0)


def test_the_shipped_prices_are_used(tmp_path: Path) -> None:
    config = parse("speed").plain()
    assert ledger({"seed": STAGES["seed"]}, config, tmp_path)["stages"]["seed"]["usd"] == pytest.approx((30_000 * 5 + 10_000 * 15) / 1e6)


def test_a_single_seed_is_shown_without_an_interval() -> None:
    cell = {"mean": 0.5, "low": None, "high": None, "n": 1, "clusters": 1, "verdict": "no gain"}
    assert bracket(cell, 100, 1) == "50.0 [no interval]"
    assert verdict(cell) == "+0.500 [no interval]"
