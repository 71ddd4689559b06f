"""Asking the judge twice: the second question shows the candidates in reverse, and what disagrees is marked or dropped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from speedlit.context import Context
from speedlit.files import read_jsonl
from speedlit.records import Preference, read_rows
from speedlit.synthesis.stages import preferences
from tests.synthesis.scripted import answer, context, run_until
from tests.synthesis.server import Server


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    with Server(answer) as server:
        run_until("candidates", root, server)
    return root


def judged(inputs: Path, out: Path, judge: Callable[[dict, int], str], shard: tuple[int, int] = (0, 1), **config: object) -> tuple[Context, Server]:
    with Server(judge) as server:
        ctx = context("preferences", out, server, shard, **config)
        ctx.inputs = {name: inputs / name for name in ctx.inputs}
        preferences.run(ctx)
    return ctx, server


def first_place(body: dict, n: int) -> str:
    """A judge that looks at places only."""
    count = len(re.findall("<candidate ", body["messages"][-1]["content"]))
    return json.dumps({"reason": "first", "best": 0, "worst": count - 1})


def half_silent(body: dict, n: int) -> str:
    """A judge of places that gives no usable answer to about half of the questions."""
    return first_place(body, n) if body["seed"] % 2 else "both are nice"


def test_a_judge_of_content_agrees_with_itself(inputs: Path, tmp_path: Path) -> None:
    once, _ = judged(inputs, tmp_path / "once", answer)
    twice, server = judged(inputs, tmp_path / "twice", answer, judge_swap="drop")
    assert twice.ledger.calls == 2 * once.ledger.calls == len(server.asked), "every prompt is asked in both orders"
    found = list(read_rows(tmp_path / "twice" / "preferences" / "preferences.jsonl", Preference))
    before = list(read_rows(tmp_path / "once" / "preferences" / "preferences.jsonl", Preference))
    kept = {p.prompt_id: (p.chosen, p.rejected, p.candidates) for p in before}
    assert found and all(p.consistent is True and kept[p.prompt_id] == (p.chosen, p.rejected, p.candidates) for p in found)
    assert all(p.consistent is None for p in before) and "judge_swap" not in once.ledger.notes
    noted = twice.ledger.notes["judge_swap"]
    assert noted["checked"] == twice.ledger.accepted + twice.ledger.rejected["judge_disagrees"] and noted["agree"] == twice.ledger.accepted


@pytest.mark.parametrize("rule", ["drop", "keep"])
def test_a_judge_of_places_is_found_out(rule: str, inputs: Path, tmp_path: Path) -> None:
    ctx, _ = judged(inputs, tmp_path, first_place, judge_swap=rule)
    noted = ctx.ledger.notes["judge_swap"]
    assert noted["checked"] == noted["flipped"] == noted["best_differs"] == noted["worst_differs"] > 0 == noted["agree"]
    found = list(read_rows(tmp_path / "preferences" / "preferences.jsonl", Preference))
    rejected = [row["reason"] for row in read_jsonl(tmp_path / "preferences" / "rejected.jsonl")]
    if rule == "keep":
        assert len(found) == noted["checked"] and all(p.consistent is False for p in found)
    else:
        assert not found and rejected.count("judge_disagrees") == ctx.ledger.rejected["judge_disagrees"] == noted["checked"]


def test_a_second_answer_that_cannot_be_used_leaves_the_pair_unchecked(inputs: Path, tmp_path: Path) -> None:
    kept, _ = judged(inputs, tmp_path / "keep", half_silent, judge_swap="keep")
    noted = kept.ledger.notes["judge_swap"]
    assert noted["unusable"] > 0
    found = list(read_rows(tmp_path / "keep" / "preferences" / "preferences.jsonl", Preference))
    assert sum(p.consistent is None for p in found) == noted["unusable"]
    dropped, _ = judged(inputs, tmp_path / "drop", half_silent, judge_swap="drop")
    assert dropped.ledger.rejected["judge_swap_unusable"] == noted["unusable"]


def test_shards_ask_both_orders_and_the_whole_finds_them(inputs: Path, tmp_path: Path) -> None:
    for shard in ((1, 2), (0, 2)):
        judged(inputs, tmp_path, answer, shard, judge_swap="drop")
    ctx, server = judged(inputs, tmp_path, answer, judge_swap="drop")
    assert not server.asked and ctx.ledger.accepted > 0
