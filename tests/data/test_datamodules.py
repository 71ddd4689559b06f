"""Steps of one or several shard sets: read lazily, mixed exactly, the same for any number of ranks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speedlit.data import collate
from speedlit.data.mixture import Source, sources
from speedlit.data.samples import Samples
from speedlit.data.shards import ShardSet, write_shards
from speedlit.data.steps import StepLoader, Steps
from speedlit.data.tokens import TokenContract
from speedlit.errors import UsageError
from tests.helpers import contrastive_rows, preference_rows, sft_rows, tiny_tokenizer

ENCODE = {"sft": collate.encode_sft, "preference": collate.encode_preference, "contrastive": collate.encode_contrastive}
ROWS: dict[str, list[dict[str, Any]]] = {"sft": sft_rows(45), "preference": preference_rows(45), "contrastive": contrastive_rows(45, negatives=2)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sets")
    tiny_tokenizer(place / "tokenizer")
    for shape, rows in ROWS.items():
        write_shards(rows, place / shape, shape, chunk_bytes=800)
    labelled = [{**row, "id": f"l{i}"} for i, row in enumerate(contrastive_rows(31, ("retrieval",)))]
    write_shards(labelled, place / "labelled", "contrastive")
    return place


def made(root: Path, names: list[str], **settings: Any) -> Steps:
    from transformers import AutoTokenizer

    shape = "contrastive" if names[0] == "labelled" else names[0]
    samples = Samples([ShardSet(root / name).check() for name in names], ENCODE[shape], AutoTokenizer.from_pretrained(root / "tokenizer"), TokenContract())
    return Steps(samples, shape, **{"batch_size": 8, "micro_batch": 4, "seed": 3, **settings})


def names(step: dict[str, Any]) -> list[str]:
    return [name for batch in step["micro"] if not batch.get("idle") for name in batch["names"]]


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(torch.nan_to_num(one), torch.nan_to_num(two))
    if isinstance(one, dict):
        return set(one) == set(two) and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(equal, one, two))
    return bool(one == two)


@pytest.mark.parametrize("shape", list(ENCODE))
def test_ranks_share_the_batches_of_one_process(root: Path, shape: str) -> None:
    """45 in batches of 22: one sample is left over, fewer than ranks; nobody is without a micro-batch."""
    one = made(root, [shape], batch_size=22)
    for world in (2, 3):
        ranks = [made(root, [shape], batch_size=22, rank=rank, world=world) for rank in range(world)]
        for number in range(2 * len(one)):
            parts = [steps[number] for steps in ranks]
            assert sorted(name for part in parts for name in names(part)) == sorted(names(one[number]))
            assert {(part["samples"], part["targets"]) for part in parts} == {(one[number]["samples"], one[number]["targets"])}
            assert sum(part["tokens"] for part in parts) == one[number]["tokens"]
            assert all(part["micro"] for part in parts)
            if shape == "contrastive":
                assert len({part["micro"][0]["texts"].shape for part in parts}) == 1
                assert len({part["micro"][0]["kind"] for part in parts}) == 1


@pytest.mark.parametrize("shape", list(ENCODE))
def test_large_sets_give_the_same_samples_and_are_only_read_where_needed(root: Path, monkeypatch: pytest.MonkeyPatch, shape: str) -> None:
    small = made(root, [shape])
    monkeypatch.setattr("speedlit.data.shards.IN_MEMORY", 0)
    large = made(root, [shape])
    assert large.samples.chunks is not None
    assert len(large.samples.chunks) > 3
    assert not large.samples.sets[0]._open  # nothing was read before the first step
    for index in (0, 7, 44):
        assert large.samples.take(np.asarray([index]))[0]["id"] == small.samples.take(np.asarray([index]))[0]["id"] == ROWS[shape][index]["id"]
    monkeypatch.setattr(large.samples, "chunks", None)  # one window, as of a small set
    large._epoch = -1
    assert all(equal(large[number], small[number]) for number in range(len(small)))


def test_a_damaged_chunk_of_a_large_set_is_refused_before_it_is_used(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    shutil.copytree(root, tmp_path / "root")
    chunk = sorted((tmp_path / "root" / "sft").glob("*.bin"))[1]
    chunk.write_bytes(chunk.read_bytes()[:-3] + b"???")
    monkeypatch.setattr("speedlit.data.shards.IN_MEMORY", 0)
    steps = made(tmp_path / "root", ["sft"])
    with pytest.raises(UsageError, match=chunk.name):
        [steps[number] for number in range(len(steps))]


def test_sets_are_mixed_by_weight_and_cap_exactly(root: Path) -> None:
    mix = sources([{"path": "a", "weight": 0.4}, {"path": "b", "weight": 3, "cap": 70}])
    steps = made(root, ["contrastive", "labelled"], mix=mix)
    assert steps.takes == [18, 70]
    seen: Counter[str] = Counter()
    for epoch in range(5):
        found = [name for number in range(epoch * len(steps), (epoch + 1) * len(steps)) for name in names(steps[number])]
        counts = Counter(found)
        assert sum(name.startswith("l") for name in found) == 70
        assert sum(name.startswith("c") for name in found) == 18
        assert {value for name, value in counts.items() if name.startswith("c")} == {1}
        assert {value for name, value in counts.items() if name.startswith("l")} == {2, 3}
        seen += counts
        assert Counter(int(name[1:]) % 2 for name in found if name.startswith("c")) == {0: 9, 1: 9}  # each kind its share
    for kind in (0, 1):  # 45 of 23, and of 22
        assert {value for name, value in seen.items() if name.startswith("c") and int(name[1:]) % 2 == kind} == ({1, 2}, {2, 3})[kind]
    assert len({value for name, value in seen.items() if name.startswith("l")}) == 2  # 350 of 31: 11 or 12 times
    again = made(root, ["contrastive", "labelled"], mix=mix)
    assert equal(again[4 * len(steps) + 2], steps[4 * len(steps) + 2])
    assert all(len({batch["kind"] for batch in steps[number]["micro"]}) == 1 for number in range(len(steps)))


def test_entries_of_shards(root: Path) -> None:
    assert sources("a") == sources(["a"]) == sources([{"path": "a"}]) == [Source("a")]
    for entry, said in (({"pth": "a"}, "pth; it knows path"), ({"weight": 1}, "without path"), ({"path": "a", "weight": 0}, "take nothing")):
        with pytest.raises(UsageError, match=said):
            Source.of(entry)
    assert [Source("a", weight, cap).take(10) for weight, cap in ((1.0, None), (0.25, None), (2.5, 20), (0.01, None))] == [10, 2, 20, 1]


def test_a_checkpoint_goes_on_with_its_own_data_only(root: Path) -> None:
    state = StepLoader(made(root, ["sft"])).state_dict()
    StepLoader(made(root, ["sft"], micro_batch=1, rank=1, world=2)).load_state_dict({**state, "done": 3})
    StepLoader(made(root, ["sft"])).load_state_dict({key: state[key] for key in ("done", "per_epoch")})  # of an older version
    with pytest.raises(UsageError, match="seed changed"):
        StepLoader(made(root, ["sft"], seed=4)).load_state_dict(state)
    with pytest.raises(UsageError, match="steps per epoch"):
        StepLoader(made(root, ["sft"], batch_size=5)).load_state_dict(state)


def test_scores_come_through(tmp_path: Path, root: Path) -> None:
    rows = contrastive_rows(4, ("sts",), 2)
    for index, row in enumerate(rows[:3]):
        row["scores"] = [3, 2.5, float(index)]
    write_shards(rows, tmp_path / "graded", "contrastive")
    (tmp_path / "tokenizer").symlink_to(root / "tokenizer")
    samples = Samples([ShardSet(tmp_path / "graded")], collate.encode_contrastive, made(root, ["sft"]).samples.tokenizer, TokenContract())
    batch = Steps(samples, "contrastive", 4, None, 0, shuffle=False)[0]["micro"][0]
    assert batch["scores"][:3].tolist() == [[3.0, 2.5, 0.0], [3.0, 2.5, 1.0], [3.0, 2.5, 2.0]]
    assert batch["scores"][3].isnan().all()
    for wrong, said in (([1.0], "has 1 entries"), ([1.0, 2.0, float("nan")], "finite")):
        with pytest.raises(UsageError, match=said):
            write_shards([{**rows[0], "scores": wrong}], tmp_path / "x", "contrastive")
    with pytest.raises(UsageError, match="row 1 has 'scores' and row 0 has not"):
        write_shards([rows[3], rows[0]], tmp_path / "x", "contrastive")
