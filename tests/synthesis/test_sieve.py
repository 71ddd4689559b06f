"""What the dataset stage keeps: planted faults are found, and stretches, processes and order change nothing."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import random
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.bench import dataset as bench
from speedlit import workers
from speedlit.data.shards import ShardSet
from speedlit.errors import SpeedlitError, UsageError
from speedlit.files import read_json, read_jsonl
from speedlit.records import Prompt
from speedlit.synthesis import lines
from speedlit.synthesis.hashing import encode, runs, whole
from speedlit.synthesis.near import SHINGLE, SLOTS, NearFilter, banding, near_duplicates, sketches
from speedlit.synthesis.stages import dataset

SIZE = 1000
WORDS = [f"word{i}" for i in range(2000)]


def shingles(text: str) -> set[str]:
    tokens = text.split()
    return {" ".join(tokens[i : i + SHINGLE]) for i in range(max(len(tokens) - SHINGLE + 1, 1))}


def jaccard(a: str, b: str) -> float:
    left, right = shingles(a), shingles(b)
    return len(left & right) / len(left | right)


def edited(rng: random.Random, text: str, edits: int) -> str:
    tokens = text.split()
    for i in rng.sample(range(len(tokens)), edits):
        tokens[i] = f"edit{rng.randrange(10**6)}"
    return " ".join(tokens)


def near(texts: list[str], threshold: float) -> list[int]:
    """As the dataset stage does it, with the sketches in memory."""
    tokens, bounds = encode(texts)
    hashes, places = runs(tokens, bounds[:-1], bounds[1:], SHINGLE)
    bands, short = sketches(hashes, places, threshold), hashes.astype(np.uint32)
    return near_duplicates(len(texts), lambda band: bands[:, band], lambda i: short[places[i] : places[i + 1]], threshold)


def test_runs_of_words_are_the_runs() -> None:
    texts = ["", "a b", "a b c d e", "x a b c d e", "c", "a b c d e f a b c d e", ""]
    tokens, bounds = encode(texts)
    hashes, places = runs(tokens, bounds[:-1], bounds[1:], 5)
    value = {}  # run -> hash: equal runs agree wherever they stand, different ones differ
    for i, text in enumerate(texts):
        parts = text.split()
        expected = [" ".join(parts[k : k + 5]) for k in range(max(len(parts) - 4, 1))]
        found = hashes[places[i] : places[i + 1]].tolist()
        assert len(found) == len(expected)
        for run, number in zip(expected, found, strict=True):
            assert value.setdefault(run, number) == number
    assert len(set(value.values())) == len(value)
    assert whole(tokens, bounds[2:3], bounds[3:4])[0] == value["a b c d e"]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_find_nearly_all_pairs_at_the_threshold_and_as_little_else_as_that_allows(threshold: float) -> None:
    def found(bands: int, rows: int) -> float:
        return 1 - (1 - threshold**rows) ** bands

    bands, rows = banding(threshold)
    assert bands * rows <= SLOTS and found(bands, rows) >= 0.995
    assert rows == SLOTS or found(SLOTS // (rows + 1), rows + 1) < 0.995


@pytest.mark.parametrize("threshold", [0.6, 0.8])
def test_recall_at_the_threshold_and_nothing_below_it(threshold: float) -> None:
    rng = random.Random(3)
    originals = [" ".join(rng.choices(WORDS, k=100)) for _ in range(1500)]
    copies = [edited(rng, text, rng.randint(1, 6)) for text in originals]
    alike = {i + len(originals) for i, (a, b) in enumerate(zip(originals, copies, strict=True)) if jaccard(a, b) >= threshold}
    found = set(near(originals + copies, threshold))
    assert len(alike) > 300 and len(alike) < 1500
    assert found <= alike
    assert len(found) >= 0.98 * len(alike)
    one_by_one = NearFilter(threshold)
    some = originals[:200] + copies[:200]
    assert [i for i, text in enumerate(some) if one_by_one.is_duplicate(text)] == near(some, threshold)


def test_of_a_crowd_of_like_texts_those_stay_that_resemble_none_that_stays() -> None:
    rng = random.Random(4)
    root = " ".join(rng.choices(WORDS, k=80))
    crowd = [edited(rng, root, rng.randint(0, 3)) for _ in range(300)]
    dropped = set(near(crowd, 0.8))
    stays = [text for i, text in enumerate(crowd) if i not in dropped]
    assert 1 <= len(stays) < 200
    assert all(jaccard(a, b) < 0.8 for a, b in combinations(stays, 2))
    assert all(any(jaccard(crowd[i], text) >= 0.8 for text in stays) for i in dropped)


@dataclass
class Made:
    """A folder in which the stage has run once, in one process, what was planted there, and the ledger."""

    root: Path
    planted: dict[str, list]
    ledger: dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root, out = tmp_path_factory.mktemp("made"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(bench, "TASKS", 40)
        planted = bench.make(root, SIZE)
        bench.stage(root)
    return Made(root, planted, json.loads(out.getvalue().splitlines()[-1]))


def outcome(root: Path) -> dict[str, object]:
    """All that the stage decided and wrote."""
    shards = ShardSet(root / "dataset" / "shards" / "refined").verify()
    files = ("dropped.jsonl", "triplets-refined.jsonl")
    columns = {name: column.tolist() for name, column in shards.table().items()}
    return {"rows": list(shards), "columns": columns, **{name: (root / "dataset" / name).read_bytes() for name in files}}


def test_planted_faults_are_found(made: Made) -> None:
    found, rejected = bench.verdict(made.root, made.planted), made.ledger["rejected"]
    assert found["found"] == {"near": 1.0, "far": 0.0, "copy": 1.0, "contaminated": 1.0, "negative": 1.0} and all(found["planted"].values())
    note = made.ledger["notes"]["decontamination"]
    assert note["dropped"] == len(made.planted["contaminated"]) == rejected["refined:contaminated"]
    assert set(note["first_ids"]) == set(made.planted["contaminated"])
    assert len(list(read_jsonl(made.root / "dataset" / "triplets-refined.jsonl"))) == made.ledger["accepted"] == SIZE - sum(rejected.values())
    assert not (made.root / "dataset" / "work" / "sieve").exists(), "working files are gone"


def test_lineage_joins(made: Made) -> None:
    prompts = {row["id"]: row for row in read_jsonl(made.root / "tasks" / "prompts.jsonl")}
    topics = {row["id"]: row["topic_id"] for row in read_jsonl(made.root / "tasks" / "tasks.jsonl")}
    records = {row["id"]: row for row in read_jsonl(made.root / "refinement" / "records.jsonl")}
    revisions = {row["record_id"]: row["id"] for row in read_jsonl(made.root / "refinement" / "revisions.jsonl")}
    for row in read_jsonl(made.root / "dataset" / "triplets-refined.jsonl"):
        record, line = records[row["record_id"]], row["lineage"]
        assert line["record"] == record["id"] and line["generation"] == record["generation_id"] and line["prompt"] == record["prompt_id"]
        assert line["task"] == prompts[line["prompt"]]["task_id"] and line["topic"] == topics[line["task"]]
        assert line["revision"] == revisions[record["id"]]
        assert [row[key] for key in ("query", "positive", "negatives")] == [record[key] for key in ("query", "positive", "negatives")]


def test_cuts_and_processes_change_nothing(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    once = outcome(made.root)
    monkeypatch.setattr(lines, "STRETCH", 700_000)
    monkeypatch.setattr("speedlit.synthesis.sieve.STRETCH", 700_000)
    monkeypatch.setattr("speedlit.synthesis.sieve.BATCH", 37)
    monkeypatch.setattr(dataset, "PART", 300_000)
    monkeypatch.setattr(workers, "cores", lambda: 2)
    bench.stage(made.root)
    assert len(read_json(made.root / "dataset" / "shards" / "refined" / "manifest.json")["chunks"]) > 2
    assert outcome(made.root) == once


def test_every_line_is_in_one_stretch(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"n": n, "text": "ü" * (n % 7)}, ensure_ascii=False) + "\n" for n in range(50)) + "\n" + '{"n": 50}', encoding="utf-8")
    for size in (1, 10, 23, 10_000):
        found = [(start, row["n"]) for stretch in lines.stretches(path, size) for start, row in lines.rows(path, stretch)]
        assert [n for _, n in found] == list(range(51))
    with lines.Lines(path) as places:
        assert all(places[start]["n"] == n for start, n in found)
    path.write_text('{"n": 1}\n[2]\n')
    with pytest.raises(UsageError, match=f"{path}: the line at byte 9 is not a JSON object but list"):
        list(lines.rows(path))


def test_records_are_joined_to_prompts_in_one_pass() -> None:
    prompts = [Prompt("t", "k", "task", "topic", "g", "train", "seed", i, "x@1", {}, []) for i in range(5)]

    class Asked:
        def __init__(self, prompt: Prompt) -> None:
            self.prompt_id = prompt.id

    wanted = [prompts[i] for i in (0, 2, 2, 4)]
    assert [prompt for _, prompt in lines.with_prompts(map(Asked, wanted), prompts, "x.jsonl")] == wanted
    with pytest.raises(SpeedlitError, match="x.jsonl: the prompt .* out of order"):
        list(lines.with_prompts(map(Asked, [prompts[2], prompts[0]]), prompts, "x.jsonl"))


def test_a_worker_that_dies_is_told_in_words() -> None:
    with pytest.raises(SpeedlitError, match="a worker process died"):
        list(workers.in_order(exit_at_three, range(5), processes=2))


def exit_at_three(job: int) -> int:
    import os

    return os._exit(1) if job == 3 else job


def test_a_full_disk_is_told_in_words(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("speedlit.synthesis.sieve.spill", full)
    with pytest.raises(SpeedlitError, match="no space left on the disk while writing .*dataset"):
        bench.stage(made.root)
