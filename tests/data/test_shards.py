"""Shards hold what was written, and any damage is refused by the file's name."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from speedlit.data.shards import ShardSet, write_shards
from speedlit.errors import UsageError
from tests.helpers import contrastive_rows, preference_rows, sft_rows

ROWS = {"sft": sft_rows(60), "preference": preference_rows(60), "contrastive": contrastive_rows(60)}


@pytest.mark.parametrize("shape", list(ROWS))
def test_rows_come_back_as_they_were(tmp_path: Path, shape: str) -> None:
    manifest = write_shards(iter(ROWS[shape]), tmp_path / "s", shape, chunk_bytes=2000)
    assert manifest.count == 60
    assert len(manifest.chunks) > 2
    shards = ShardSet(tmp_path / "s").verify()
    assert len(shards) == 60
    assert list(shards) == [shards[i] for i in range(60)] == ROWS[shape]
    assert pickle.loads(pickle.dumps(shards))[7] == ROWS[shape][7]
    table = shards.table()
    first = next(name for name in table if name != "instruction")
    assert table[first].tolist() == [len(row[first]) for row in ROWS[shape]]
    if shape == "contrastive":
        assert [sorted(manifest.kinds)[kind] for kind in table["kind"]] == [row["kind"] for row in ROWS[shape]]
        assert set(table["documents"].tolist()) == {2}


def test_large_sets_are_read_by_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(ROWS["sft"], tmp_path / "s", "sft", chunk_bytes=2000)
    monkeypatch.setattr("speedlit.data.shards.IN_MEMORY", 0)
    shards = ShardSet(tmp_path / "s")
    assert not shards.small
    assert [shards[i] for i in (59, 0, 31, 30)] == [ROWS["sft"][i] for i in (59, 0, 31, 30)]


def test_uneven_and_odd_texts_survive(tmp_path: Path) -> None:
    rows = [
        {"id": "1", "kind": "sts", "instruction": "", "query": "ü 漢字 \n\t\"x\"", "positive": "", "negatives": []},
        {"id": "2", "kind": "sts", "instruction": "i", "query": "q", "positive": "p", "negatives": ["a", "", "c" * 5000]},
    ]
    write_shards(rows, tmp_path / "s", "contrastive", chunk_bytes=1000)
    assert list(ShardSet(tmp_path / "s").verify()) == rows


def test_rows_get_ids_and_wrong_rows_are_named(tmp_path: Path) -> None:
    write_shards([{"prompt": "a", "completion": "b", "more": 3}], tmp_path / "s", "sft")
    row = ShardSet(tmp_path / "s")[0]
    assert set(row) == {"id", "prompt", "completion"}
    assert len(row["id"]) == 16
    wrong = [([{"prompt": "a"}], "row 0 has no 'completion'"), ([], "no rows")]
    wrong.append(([*ROWS["sft"], {"prompt": 3, "completion": ""}], "row 60: 'prompt' must be text"))
    for bad, pattern in wrong:
        with pytest.raises(UsageError, match=pattern):
            write_shards(bad, tmp_path / "s", "sft")
    assert len(ShardSet(tmp_path / "s").verify()) == 1  # what was there is untouched
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not a finished shard set"):
        write_shards(ROWS["sft"], tmp_path / "mine", "sft")
    with pytest.raises(UsageError, match="unknown shape"):
        write_shards(ROWS["sft"], tmp_path / "x", "dpo")


@pytest.mark.parametrize("damage", ["flip", "cut", "missing chunk", "index without a chunk", "lengths", "no manifest", "older schema"])
def test_damage_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    place = tmp_path / "s"
    write_shards(ROWS["sft"], place, "sft", chunk_bytes=2000)
    chunk = sorted(place.glob("*.bin"))[1]
    data = bytearray(chunk.read_bytes())
    name = chunk.name
    if damage == "flip":
        data[-3] ^= 0x20
        chunk.write_bytes(bytes(data))
    elif damage == "cut":
        chunk.write_bytes(bytes(data[:-5]))
    elif damage == "missing chunk":
        chunk.unlink()
    elif damage == "index without a chunk":
        index = json.loads((place / "index.json").read_text())
        index["chunks"].pop()
        (place / "index.json").write_text(json.dumps(index))
        name = "index.json"
    elif damage == "lengths":
        (place / "lengths.npy").unlink()
        name = "lengths.npy"
    elif damage == "no manifest":
        (place / "manifest.json").unlink()
        name = "manifest.json"
    else:
        manifest = json.loads((place / "manifest.json").read_text())
        (place / "manifest.json").write_text(json.dumps({**manifest, "schema": 0}))
        name = "manifest.json"
    with pytest.raises(UsageError, match=name.replace(".", r"\.")):
        ShardSet(place).verify()


def test_an_interrupted_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    def rows():  # type: ignore[no-untyped-def]
        yield from ROWS["sft"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(rows(), tmp_path / "s", "sft")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="no such folder"):
        ShardSet(tmp_path / "s")
