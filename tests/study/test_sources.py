"""The data that a study makes itself are those that the run would have made: same answers, same revisions, same filters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from speedlit.context import Backend
from speedlit.errors import SpeedlitError
from speedlit.files import read_json, read_jsonl, write_json
from speedlit.pipeline.config import RunConfig, Topics
from speedlit.pipeline.configure import parse
from speedlit.pipeline.loop import Wanted
from speedlit.study import sources
from speedlit.study.ablation import untruncated
from speedlit.study.longtail import held_out, write_probe
from speedlit.study.room import Room
from speedlit.synthesis.client import HTTPBackend
from tests.synthesis.scripted import CONFIG, STAGES, answer, run_until
from tests.synthesis.server import Server

SAMPLING = {**CONFIG["sampling"], "batch_size": 8, "processes": 1, "dtype": "float32", "base_url": None}


class ScriptedRoom(Room):
    """A room beside the stages of a scripted run."""

    def __init__(self, root: Path) -> None:
        self.kind, self.root, self.folder = "ablation", root, root / "study"
        self.services = SimpleNamespace(evaluation_texts=None, backend=None)
        self.config = {**CONFIG, "sampling": SAMPLING}
        self.inputs = {stage: root / stage for stage in (*STAGES, "revisor")}


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Server]]:
    """The root of a finished scripted run, and the server that plays its models."""
    root = tmp_path_factory.mktemp("scripted")
    with Server(answer) as server:
        run_until("dataset", root, server)
        write_json(root / "synthesis" / "_SUCCESS", {})
        for stage in ("tasks", "dataset", "revisor"):
            write_json(root / stage / "manifest.json", {"stage": stage})
        yield root, server


@pytest.fixture
def room(scripted: tuple[Path, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedRoom:
    """A room of its own in that run, which notes whose answers were asked for."""
    made = ScriptedRoom(scripted[0])
    made.folder, made.asked = tmp_path / "study", []

    def generator(_: Room, role: str, model: Path) -> Backend:
        made.asked.append(role)
        return HTTPBackend("m", scripted[1].url, None, role=role, concurrency=8, backoff=0.01)

    monkeypatch.setattr(sources, "generator", generator)
    return made


def texts(path: Path) -> list[tuple[str, str, list[str]]]:
    return [(row["query"], row["positive"], row["negatives"]) for row in read_jsonl(path)]


def test_what_a_study_writes_is_what_the_run_wrote(room: ScriptedRoom) -> None:
    own = texts(room.root / "dataset/triplets-junior.jsonl")
    path = sources.made(room, "junior", "junior", room.root / "model", False)
    assert texts(path)[: len(own)] == own
    assert own
    counts = read_json(path.parent / "made.json")
    assert counts["generated"] == 24
    assert counts["accepted"] + sum(counts["rejected"].values()) == 24
    assert sources.made(room, "junior", "junior", room.root / "model", False) == path
    assert room.asked == ["junior"], "what is there is not written again"


def test_the_revisor_goes_over_what_the_writer_wrote(room: ScriptedRoom) -> None:
    """The scripted revisor puts the word "mended" in the place of a first word, or does nothing."""
    own = {rest(row): row for row in texts(room.root / "dataset/triplets-junior.jsonl")}
    revised = texts(sources.made(room, "junior-revised", "junior", room.root / "model", True))
    assert set(own) <= set(map(rest, revised))
    assert any("mended" in query for query, _, _ in revised)
    assert not any("mended" in query for query, _, _ in own.values())
    assert room.asked == ["junior", "revisor"]


def rest(row: tuple[str, str, list[str]]) -> tuple[str, ...]:
    """All words but each text's first."""
    return tuple(text.partition(" ")[2] for text in (row[0], row[1], *row[2]))


def test_the_run_s_own_records_are_read_and_nothing_left_is_an_error(room: ScriptedRoom) -> None:
    own = texts(room.root / "dataset/triplets-senior.jsonl")
    assert texts(sources.made(room, "senior", "senior", None, False))[: len(own)] == own
    assert room.asked == []
    room.config = {**room.config, "filters": {"copied_query": 0.0, "negative_like_positive": 1e-9, "minhash_threshold": 1e-9, "ngram": 1}}
    with pytest.raises(SpeedlitError, match="the filters leave nothing of the data in .*: loosen `filters`"):
        sources.made(room, "senior", "senior", None, False)


def test_held_out_records_stand_in_where_no_set_names_topics(room: ScriptedRoom, tmp_path: Path) -> None:
    write_probe(tmp_path / "probe.json", None, [], held_out(room.root / "tasks", room.root / "refinement"), 4)
    (found,) = read_json(tmp_path / "probe.json")["sets"]
    prompts = {row["id"]: row for row in read_jsonl(room.root / "tasks/prompts.jsonl")}
    records = [row for row in read_jsonl(room.root / "refinement/records.jsonl") if prompts[row["prompt_id"]]["use"] == "test"]
    wanted = [row for row in records if row["kind"] != "classification"]
    assert [query["id"] for query in found["queries"]] == [row["id"] for row in wanted]
    assert wanted
    for query, row in zip(found["queries"], wanted, strict=True):
        assert query["topic"] == prompts[row["prompt_id"]]["topic"]
        assert [found["documents"][place] for place in query["relevant"]] == [row["positive"]]


def test_whole_topics_are_a_loop_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def loop(config: RunConfig, wanted: Wanted, say: object) -> None:
        asked.append((config.root, config.topics.depth, config.topics.file, wanted.until))

    monkeypatch.setattr("speedlit.pipeline.loop.run", loop)
    room = ScriptedRoom(tmp_path)
    room.services = SimpleNamespace(config=replace(parse("demo"), root=str(tmp_path), topics=Topics("topics.txt", 4)))
    found = untruncated(room)
    assert asked == [(str(tmp_path / "study/ablation/untruncated"), 99, "topics.txt", "dataset")]
    assert found == tmp_path / "study/ablation/untruncated/stages/12-dataset/triplets-refined.jsonl"
