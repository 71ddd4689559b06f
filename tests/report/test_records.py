"""What the record browser is given: whole lineages, a drawn share of a large run, and one sentence about damage."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from speedlit.errors import UsageError
from speedlit.files import read_jsonl, write_jsonl
from speedlit.report.records import SOURCES, browsed
from tests.report.making import KEYS, make_many, make_run


def unpacked(parts: list[str]) -> list[dict[str, Any]]:
    return [prompt for part in parts for prompt in json.loads(gzip.decompress(base64.b64decode(part)))]


def test_a_record_has_its_whole_lineage(tmp_path: Path) -> None:
    folders = make_run(tmp_path)
    found = browsed(folders)
    assert (found.shown, found.total) == (5, 5)
    root, data = sorted(unpacked(found.parts), key=lambda prompt: prompt["use"])
    assert root["topic"][1] == "Science/Whales" and root["task"][1:] == ["find whales", "whale/colour", "train"] and root["text"] == "find whales root"
    assert root["keys"] == KEYS and root["roles"] == ["query", "positive", "negative"] and root["judge"] == "says more"
    assert [(r.get("rank"), r.get("verdict"), r["fate"]) for r in root["records"]] == [
        (2, "between", "judged between"),
        (3, "worst", "judged worst"),
        (1, "best", "judged best"),
        (None, None, "no record: not_json"),
    ]
    (senior,) = data["records"]
    assert SOURCES[senior["s"]].label == "senior, then revisor" and senior["f"][1] == "a whale is near the old harbour"
    assert senior["revision"] == {
        "by": "revisor", "status": "revised", "reason": "says more", "after": ["where is a whale", "a whale is near the new harbour", "a whale is far away"]
    }  # fmt: skip
    (triplet,) = read_jsonl(folders["dataset"] / "triplets-refined.jsonl")
    assert senior["fate"] == "in the data set" and senior["triplet"] == triplet["id"], "found by the id that the record has after its revision"


def test_what_the_filters_left_out_says_why(tmp_path: Path) -> None:
    folders = make_run(tmp_path)
    (refined,) = read_jsonl(folders["refinement"] / "records.jsonl")
    write_jsonl(folders["dataset"] / "triplets-refined.jsonl", [])
    write_jsonl(folders["dataset"] / "dropped.jsonl", [{"source": "refined", "record_id": refined["id"], "reason": "contaminated"}])
    fates = [record["fate"] for prompt in unpacked(browsed(folders).parts) for record in prompt["records"]]
    assert "left out: contaminated" in fates


def test_a_large_run_shows_all_answers_to_some_prompts_and_always_the_same(tmp_path: Path) -> None:
    folders = make_many(tmp_path, 5_000)
    found, again, more = browsed(folders, 1_000), browsed(folders, 1_000), browsed(folders, 2_000)
    assert found == again and found.total == 5_000 and 800 < found.shown < 1_200
    prompts = unpacked(found.parts)
    assert all(len(prompt["records"]) == 5 for prompt in prompts)
    assert {prompt["id"] for prompt in prompts} < {prompt["id"] for prompt in unpacked(more.parts)}
    assert browsed(folders, 0).parts == []


def test_a_row_without_its_keys_is_named(tmp_path: Path) -> None:
    folders = make_run(tmp_path)
    row = next(read_jsonl(folders["candidates"] / "records.jsonl"))
    del row["fields"]
    write_jsonl(folders["candidates"] / "records.jsonl", [row])
    with pytest.raises(UsageError, match=r"lacks the key 'fields': redo its stage with `speedlit run --from STAGE`"):
        browsed(folders)


def test_a_value_of_a_wrong_type_is_told_and_half_a_character_shown(tmp_path: Path) -> None:
    folders = make_run(tmp_path)
    failed = next(read_jsonl(folders["candidates"] / "rejected.jsonl"))
    (folders["candidates"] / "rejected.jsonl").write_text(json.dumps({**failed, "text": "a \ud83d b"}, sort_keys=True, separators=(",", ":")) + "\n")
    texts = [record.get("x") for part in browsed(folders).parts for prompt in unpacked([part]) for record in prompt["records"]]
    assert "a ? b" in texts
    write_jsonl(folders["candidates"] / "rejected.jsonl", [{**failed, "reason": None}])
    with pytest.raises(UsageError, match="has a value of a wrong type .*: redo its stage with `speedlit run --from STAGE`"):
        browsed(folders)
