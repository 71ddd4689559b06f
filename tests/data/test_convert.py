"""TRL's formats become rows; labelled texts become pairs."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from speedlit.data.convert import convert, guess_shape, labelled, read_rows
from speedlit.errors import UsageError
from tests.helpers import tiny_tokenizer

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture
def chat(tmp_path: Path) -> Any:
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def one(row: dict[str, Any], tokenizer: Any = None) -> dict[str, Any]:
    shape = guess_shape(row)
    return {"shape": shape, **next(iter(convert([row], shape, tokenizer)))}


def test_plain_formats() -> None:
    assert one({"id": 7, "prompt": "a", "completion": "b", "x": 1}) == {"shape": "sft", "id": "7", "prompt": "a", "completion": "b"}
    assert one({"prompt": "a", "chosen": "b", "rejected": "c"}) == {"shape": "preference", "prompt": "a", "chosen": "b", "rejected": "c"}
    implicit = one({"chosen": "The sky is blue", "rejected": "The sky is green"})
    assert implicit == {"shape": "preference", "prompt": "The sky is", "chosen": " blue", "rejected": " green"}
    row = {"query": "q", "positive": "p", "negatives": ["n", "m"], "instruction": "find", "kind": "sts"}
    assert one(row) == {"shape": "contrastive", **row}
    assert one({**row, "scores": [3, 1, 0.5]}) == {"shape": "contrastive", **row, "scores": [3, 1, 0.5]}
    assert one({"anchor": "q", "positive": "p", "negative": "n"})["negatives"] == ["n"]
    assert one({"query": "q", "pos": ["p"], "neg": []})["positive"] == "p"


def test_conversations_go_through_the_chat_template(chat: Any) -> None:
    expected = {"shape": "sft", "prompt": "<user>hi</user><assistant>", "completion": "yo</assistant>"}
    assert one({"prompt": [say("user", "hi")], "completion": [say("assistant", "yo")]}, chat) == expected
    assert one({"messages": [say("user", "hi"), say("assistant", "yo")]}, chat) == expected
    assert one({"conversations": [{"from": "user", "value": "hi"}, {"from": "assistant", "value": "yo"}]}, chat) == expected
    found = one({"chosen": [say("user", "hi"), say("assistant", "yo")], "rejected": [say("user", "hi"), say("assistant", "no")]}, chat)
    assert found == {"shape": "preference", "prompt": "<user>hi</user><assistant>", "chosen": "yo</assistant>", "rejected": "no</assistant>"}
    row = {"query": [say("user", "hi")], "positive": [say("user", "a"), say("assistant", "b")], "negatives": [[say("user", "n")]]}
    found = one(row, chat)
    assert (found["query"], found["positive"], found["negatives"]) == ("hi", "<user>a</user><assistant>b</assistant>", ["n"])


def test_the_source_rows_stay_as_they_are(chat: Any) -> None:
    row = {"conversations": [{"from": "user", "value": "hi"}, {"from": "assistant", "value": "yo"}]}
    before = json.dumps(row)
    one(row, chat)
    assert json.dumps(row) == before


@pytest.mark.parametrize(
    ("row", "shape", "said"),
    [
        ({"prompt": [say("user", "x")], "completion": [say("assistant", "y")]}, "sft", "row 0: .*--tokenizer"),
        ({"messages": [say("user", "x")]}, "sft", "must end with an assistant"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "preference", "are the same"),
        ({"query": "a", "positive": []}, "contrastive", "needs a query and a positive"),
        ({"prompt": "a"}, "sft", "KeyError"),
    ],
)
def test_rows_that_fit_no_format_are_named(row: dict[str, Any], shape: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        list(convert([row], shape))
    with pytest.raises(UsageError, match="can't tell the shape"):
        guess_shape({"foo": 1})


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "parquet", "disk", "dict", "folder"])
def test_files_and_dataset_folders_are_read(tmp_path: Path, form: str) -> None:
    from datasets import Dataset, DatasetDict

    rows = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(5)]
    path = tmp_path / f"rows.{form}"
    if form in ("jsonl", "folder"):
        path = path if form == "jsonl" else tmp_path / "folder" / "train.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(map(json.dumps, rows)))
        path = path if form == "jsonl" else path.parent
    elif form == "json":
        path.write_text(json.dumps(rows))
    elif form == "csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["prompt", "completion"])
            writer.writeheader()
            writer.writerows(rows)
    elif form == "parquet":
        Dataset.from_list(rows).to_parquet(str(path))
    elif form == "disk":
        Dataset.from_list(rows).save_to_disk(str(path))
    else:
        DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows[:1])).save_to_disk(str(path))
        assert len(list(read_rows(path, "test"))) == 1
        with pytest.raises(UsageError, match="no split 'dev'; it has train, test"):
            list(read_rows(path, "dev"))
    assert list(read_rows(path)) == rows


def test_unreadable_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_rows(tmp_path / "x.jsonl")
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(UsageError, match="can't tell its format"):
        read_rows(tmp_path / "x.txt")
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a": ')
    with pytest.raises(UsageError, match=r"x\.jsonl:2"):
        list(read_rows(tmp_path / "x.jsonl"))


def test_labelled_texts_become_pairs() -> None:
    rows = [{"text": f"{name} {i}", "label": name} for name in ("card", "loan", "pin") for i in range(6)] + [{"text": "alone", "label": "rare"}]
    made = list(labelled(rows, "text", "label", seed=1, negatives=2, rounds=2))
    assert made == list(labelled(reversed(rows), "text", "label", seed=1, negatives=2, rounds=2))  # the order of the source doesn't matter
    assert made != list(labelled(rows, "text", "label", seed=2, negatives=2, rounds=2))
    assert Counter(row["query"] for row in made) == {row["text"]: 2 for row in rows[:-1]}
    for row in made:
        name = row["query"].split()[0]
        assert row["positive"].split()[0] == name
        assert row["positive"] != row["query"]
        assert name not in {negative.split()[0] for negative in row["negatives"]}
        assert len(row["negatives"]) == 2
    with pytest.raises(UsageError, match="no 'intent'"):
        list(labelled(rows, "text", "intent"))
    with pytest.raises(UsageError, match="more than 1 labels"):
        list(labelled(rows[:3], "text", "label"))
