"""The nine synthesis stages against a scripted teacher over HTTP: files, splits, lineage, shards, resume."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from speedlit.context import Context
from speedlit.data.shards import ShardSet
from speedlit.errors import UsageError
from speedlit.files import read_jsonl
from speedlit.records import Generation, Preference, Prompt, Record, Revision, Task, Topic, Triplet, read_rows, write_rows
from speedlit.synthesis.rows import preference_rows, revision_rows, sft_rows
from speedlit.synthesis.stages.topics import read_topics, truncate
from speedlit.synthesis.templates import load_set
from tests.synthesis.scripted import answer, context, run_until
from tests.synthesis.server import Server

RUN = tuple[Path, dict[str, Context], Server]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RUN:
    root = tmp_path_factory.mktemp("run")
    with Server(answer) as server:
        return root, run_until("dataset", root, server), server


def rows(root: Path, stage: str, name: str, kind: type) -> list:
    return list(read_rows(root / stage / f"{name}.jsonl", kind))


def test_topics_are_truncated_in_the_middle() -> None:
    assert truncate("Arts/Movies/Titles/3/36_Hours_-_1964/Cast_and_Crew", 4) == "Arts/Movies/36_Hours_-_1964/Cast_and_Crew"  # paper D.1
    assert truncate("A/B/C/D", 4) == "A/B/C/D"
    assert truncate("A/B/C/D/E", 3) == "A/B/E"
    assert truncate("A/B/C", 1) == "A"


def test_a_topics_file(tmp_path: Path) -> None:
    path = tmp_path / "topics.txt"
    path.write_text("\ufeffTop/Arts/Movies\n# a comment\n\n Kunst / Gemälde \n", encoding="utf-8")
    assert list(read_topics(path)) == ["Arts/Movies", "Kunst/Gemälde"]
    path.write_text("\n# nothing\n")
    with pytest.raises(UsageError, match=f"{path} is empty"):
        list(read_topics(path))
    path.write_bytes(b"Arts/\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        list(read_topics(path))
    with pytest.raises(UsageError, match="cannot read"):
        list(read_topics(tmp_path / "nowhere.txt"))


def test_real_topics_are_read_and_truncated() -> None:
    path = Path(__file__).parents[2].parent / "shared" / "evaldata" / "topics_odp" / "topics.txt"
    if not path.exists():
        pytest.skip("the Open Directory topics are not on this machine")
    topics = [truncate(topic, 4) for topic in read_topics(path)]
    assert len(topics) > 1000 and not any(topic.startswith("Top/") or topic.count("/") > 3 for topic in topics)


def test_splits_hold_whole_groups_and_no_text_is_in_two_of_them(run: RUN) -> None:
    root, _, _ = run
    tasks, prompts = rows(root, "tasks", "tasks", Task), rows(root, "tasks", "prompts", Prompt)
    split_of: dict[str, set[str]] = {}
    for task in tasks:
        split_of.setdefault(task.group, set()).add(task.split)
    assert all(len(splits) == 1 for splits in split_of.values())
    assert sorted({task.split for task in tasks}) == ["test", "train", "validation"]
    held_out = {prompt.text for prompt in prompts if prompt.use == "test"}
    assert not held_out & {prompt.text for prompt in prompts if prompt.use != "test"}
    for use, count in {"seed": 30, "root": 20, "synthetic": 24, "test": 8}.items():
        texts = [prompt.text for prompt in prompts if prompt.use == use]
        assert len(texts) == len(set(texts)) == count
    kinds = [prompt.kind for prompt in prompts if prompt.use == "seed"]
    assert {kind: kinds.count(kind) for kind in kinds} == load_set("paper").shares(30)


def test_every_answer_is_a_record_or_a_rejection_with_a_reason(run: RUN) -> None:
    root, contexts, _ = run
    for stage, suffix in (("seed", ""), ("candidates", ""), ("synthesis", "-senior")):
        generations = rows(root, stage, f"generations{suffix}", Generation)
        records = rows(root, stage, f"records{suffix}", Record)
        rejected = list(read_jsonl(root / stage / f"rejected{suffix}.jsonl"))
        assert {g.id for g in generations} == {r.generation_id for r in records} | {r["generation_id"] for r in rejected}
        assert rejected and {r["reason"] for r in rejected} == {"refusal"}
    assert contexts["seed"].ledger.rejected["refusal"] + contexts["seed"].ledger.accepted == contexts["seed"].ledger.calls == 30
    assert len(rows(root, "candidates", "generations", Generation)) == 60
    junior = rows(root, "synthesis", "generations-junior", Generation)
    assert len(junior) == 24 + 8 * 3, "the junior answers held-out prompts as often as it had candidates"
    assert len(rows(root, "synthesis", "generations-control", Generation)) == 8


def test_what_was_measured_is_in_every_ledger_and_on_the_page(run: RUN) -> None:
    from speedlit.report.page import page
    from speedlit.synthesis.quality.alarms import levels_of, of_stages

    _, contexts, _ = run
    ledgers = {name: {"seconds": 1.0, **ctx.ledger.to_json()} for name, ctx in contexts.items()}
    found = {(stage, of): measured for stage, of, measured in of_stages(ledgers)}
    sources = [("synthesis", source) for source in ("senior", "junior", "control")] + [("dataset", s) for s in ("junior", "senior", "refined", "teacher")]
    assert {("seed", "seed"), ("candidates", "junior"), ("preferences", "judge"), ("revisions", "critique"), ("refinement", "refined"), *sources} <= set(found)
    assert found["seed", "seed"]["records"] + ledgers["seed"]["rejected"]["refusal"] == 30
    assert sum(sum(counts.values()) for counts in found["candidates", "junior"]["answers"].values()) == 60
    assert {"off_length", "dropped"} <= set(found["seed", "seed"]["alarms"]), "the scripted teacher counts no words, and refuses one time in eight"
    text = page("x", {"stages": ledgers, "levels": levels_of(None)})
    assert "<caption>data quality</caption>" in text and "judge_position" in text and " !</td>" in text and "at most 0.005" in text
    assert "<caption>answers</caption>" in text and "retrieval, m" in text


def test_preferences_and_revisions(run: RUN) -> None:
    root, contexts, _ = run
    records = {record.id: record for record in rows(root, "candidates", "records", Record)}
    preferences = rows(root, "preferences", "preferences", Preference)
    assert preferences and all(sum(map(len, records[p.chosen].fields.values())) >= sum(map(len, records[p.rejected].fields.values())) - 12 for p in preferences)
    assert any(list(p.candidates) != sorted(p.candidates, key=list(records).index) for p in preferences), "the order shown is shuffled"
    revisions = rows(root, "revisions", "revisions", Revision)
    assert {r.status for r in revisions} == {"revised", "kept"}
    assert contexts["revisions"].ledger.rejected["edit_unknown_field"] > 0
    changed = next(r for r in revisions if r.status == "revised")
    name, find, replace = changed.edits[0]
    assert changed.after[name] == changed.before[name].replace(find, replace, 1)


def test_refinement_keeps_the_record_where_the_revision_is_unusable(run: RUN) -> None:
    root, contexts, _ = run
    senior, refined = rows(root, "synthesis", "records-senior", Record), rows(root, "refinement", "records", Record)
    revisions = rows(root, "refinement", "revisions", Revision)
    assert [r.generation_id for r in senior] == [r.generation_id for r in refined]
    for before, after, revision in zip(senior, refined, revisions, strict=True):
        assert (before.fields == after.fields) == (revision.status != "revised")
    assert contexts["refinement"].ledger.notes["status"]["fallback"] == sum(contexts["refinement"].ledger.rejected.values())


def test_protected_fields_stay(run: RUN, tmp_path: Path) -> None:
    root, _, _ = run
    from speedlit.synthesis.stages import refinement

    with Server(answer) as server:
        ctx = context("refinement", tmp_path, server, revise_fields=["misleading_label", "S3", "hard_negative_document"])
        ctx.inputs = {name: root / name for name in ctx.inputs}
        refinement.run(ctx)
    senior = rows(root, "synthesis", "records-senior", Record)
    refined = list(read_rows(tmp_path / "refinement" / "records.jsonl", Record))
    assert all((a.query, a.positive) == (b.query, b.positive) for a, b in zip(senior, refined, strict=True))
    assert any(a.negatives != b.negatives for a, b in zip(senior, refined, strict=True))
    assert ctx.ledger.notes["status"]["guarded_edits"] > 0


def test_triplets_have_equal_counts_and_a_lineage_that_joins(run: RUN) -> None:
    root, _, _ = run
    topics = {topic.id for topic in rows(root, "topics", "topics", Topic)}
    tasks = {task.id for task in rows(root, "tasks", "tasks", Task)}
    prompts = {prompt.id: prompt for prompt in rows(root, "tasks", "prompts", Prompt)}
    revisions = {revision.id for revision in rows(root, "refinement", "revisions", Revision)}
    sizes = set()
    for source in ("junior", "senior", "refined", "teacher"):
        triplets = rows(root, "dataset", f"triplets-{source}", Triplet)
        shards = ShardSet(root / "dataset" / "shards" / source)
        shards.verify()
        assert len(shards) == len(triplets)
        sizes.add(len(triplets))
        for triplet in triplets:
            line = triplet.lineage
            assert line["topic"] in topics and line["task"] in tasks and prompts[line["prompt"]].split == "train"
            assert ("revision" in line) == (source == "refined") and line.get("revision", "") in revisions | {""}
    assert len(sizes) == 1


def test_evaluation_texts_are_kept_out(run: RUN, tmp_path: Path) -> None:
    root, _, _ = run
    assert (root / "dataset" / "evaldata" / "T" / "corpus.jsonl").exists()
    victim = rows(root, "refinement", "records", Record)[3]
    data = tmp_path / "evaldata"
    data.mkdir()
    (data / "corpus.txt").write_text(victim.query + "\n")
    from speedlit.synthesis.stages import dataset

    with Server(answer) as server:
        ctx = context("dataset", tmp_path, server, evaluation={"tasks": [], "data": str(data)})
        ctx.inputs = {name: root / name for name in ctx.inputs}
        ctx.config["filters"]["ngram"] = 4
        dataset.run(ctx)
        ctx.config["filters"]["ngram"] = 13
    dropped = list(read_jsonl(tmp_path / "dataset" / "dropped.jsonl"))
    assert {"source": "refined", "record_id": victim.id, "reason": "contaminated"} in dropped


def test_gates_for_single_records(run: RUN, tmp_path: Path) -> None:
    root, _, _ = run
    spoilt = tmp_path / "refinement"
    records = rows(root, "refinement", "records", Record)
    used = synthetic(root, records)
    victims = {"meta_text": used[0], "copied_query": next(r for r in used[1:] if r.kind == "retrieval" and len(r.query.split()) > 3)}
    new = {"meta_text": "As an AI language model, I have no opinion.", "copied_query": f"so {victims['copied_query'].query} and more of it"}
    place = {record.id: reason for reason, record in victims.items()}
    made = [replace(r, positive=new[place[r.id]], fields={**r.fields, "x": new[place[r.id]]}) if r.id in place else r for r in records]
    write_rows(spoilt / "records.jsonl", made)
    write_rows(spoilt / "revisions.jsonl", rows(root, "refinement", "revisions", Revision))
    from speedlit.synthesis.stages import dataset

    gates = {"exact": True, "minhash_threshold": None, "ngram": None, "meta_text": True, "copied_query": 0.5}
    with Server(answer) as server:
        ctx = context("dataset", tmp_path, server, filters=gates, comparison={"sources": [], "seeds": 0}, counts={"inspected": 4})
        ctx.inputs = {**{name: root / name for name in ctx.inputs}, "refinement": spoilt}
        dataset.run(ctx)
    assert {reason: ctx.ledger.rejected[f"refined:{reason}"] for reason in victims} == {"meta_text": 1, "copied_query": 1}
    assert ctx.ledger.notes["quality"]["refined"]["inspected"] == ctx.ledger.calls == 4, "and the judge was asked about four triplets"
    assert ctx.ledger.notes["quality"]["refined"]["removed"] == round(sum(ctx.ledger.rejected.values()) / len(used), 4)


def synthetic(root: Path, records: list[Record]) -> list[Record]:
    """Those that data are made from."""
    uses = {prompt.id: prompt.use for prompt in rows(root, "tasks", "prompts", Prompt)}
    return [record for record in records if uses[record.prompt_id] == "synthetic"]


def test_texts_of_named_evaluation_tasks_are_kept_out_or_the_stage_stops(run: RUN, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, _, _ = run
    victim = rows(root, "refinement", "records", Record)[5]
    from speedlit.synthesis.stages import dataset

    def attempt(texts: object, checker: bool = True, **evaluation: object) -> Context:
        with Server(answer) as server:
            ctx = context("dataset", tmp_path, server, evaluation={"tasks": [], "data": None, **evaluation}, filters={"ngram": 4})
            ctx.inputs = {name: root / name for name in ctx.inputs}
            ctx.evaluation_texts = texts
            ctx.checker = ctx.checker if checker else None
            dataset.run(ctx)
        return ctx

    ctx = attempt(lambda names, folder: [victim.query] if (names, folder) == (["STS12"], None) else [], tasks=["STS12"])
    assert {"source": "refined", "record_id": victim.id, "reason": "contaminated"} in list(read_jsonl(tmp_path / "dataset" / "dropped.jsonl"))
    note = ctx.ledger.notes["decontamination"]
    assert note["texts"] == 1 and victim.id in note["first_ids"]
    assert note["dropped"] == sum(count for reason, count in ctx.ledger.rejected.items() if reason.endswith(":contaminated")) > 0
    with pytest.raises(UsageError, match="cannot be had here.*evaluation.data.*filters.ngram to null"):
        attempt(None, tasks=["STS12"])
    with pytest.raises(UsageError, match="there is no text in STS12"):
        attempt(lambda names, folder: [], tasks=["STS12"])
    ctx = attempt(None, checker=False)
    assert "nothing to keep out" in ctx.ledger.notes["decontamination"]
    assert "no evaluation task is named" in capsys.readouterr().err


def test_training_rows(run: RUN) -> None:
    root, _, _ = run
    prompts = rows(root, "tasks", "prompts", Prompt)
    first = next(iter(sft_rows(prompts, rows(root, "seed", "records", Record))))
    assert first["completion"].startswith('{"input_text": "') and '", "label": "' in first["completion"]
    records, preferences = rows(root, "candidates", "records", Record), rows(root, "preferences", "preferences", Preference)
    pairs = list(preference_rows(prompts, records, preferences))
    assert len(pairs) == len(preferences) and all(p["chosen"] != p["rejected"] for p in pairs)
    revisions = rows(root, "revisions", "revisions", Revision)
    edits = list(revision_rows(prompts, revisions, load_set("paper"), "edits"))
    full = list(revision_rows(prompts, revisions, load_set("paper"), "full"))
    assert len(edits) == len(full) == len(revisions)
    assert edits[0]["completion"].startswith('{"edits": [') and full[0]["completion"].startswith('{"revision": {"')


IDS = {
    "tasks": "prompts", "seed": "records", "candidates": "records", "preferences": "preferences", "revisions": "revisions",
    "synthesis": "records-senior", "refinement": "records",
}  # fmt: skip


@pytest.mark.parametrize("stage", IDS)
def test_shards_in_any_order_give_the_same_records(stage: str, run: RUN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from speedlit.synthesis.stages import common

    monkeypatch.setattr(common, "CHUNK", 16)
    root, _, _ = run
    module = import_module(f"speedlit.synthesis.stages.{stage}")
    with Server(answer) as server:
        for shard in ((2, 3), (0, 3), (1, 3), (0, 1)):
            asked = sum(server.asked.values())
            ctx = context(stage, tmp_path, server, shard)
            ctx.inputs = {name: root / name for name in ctx.inputs}
            module.run(ctx)
        assert sum(server.asked.values()) == asked, "the whole stage only puts the shards' answers together"
    assert (tmp_path / stage / f"{IDS[stage]}.jsonl").read_bytes() == (root / stage / f"{IDS[stage]}.jsonl").read_bytes()


def test_an_interrupted_local_stage_goes_on_at_its_last_part(run: RUN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from speedlit.synthesis.stages import candidates, common

    monkeypatch.setattr(common, "CHUNK", 16)
    root, _, _ = run
    with Server(answer) as server:
        ctx = context("candidates", tmp_path, server)
        ctx.inputs = {name: root / name for name in ctx.inputs}
        ask, seen = common.ask, []

        def stop(*args: object) -> object:
            for pair in ask(*args):
                seen.append(pair)
                if len(seen) == 40:
                    raise KeyboardInterrupt
                yield pair

        monkeypatch.setattr(common, "ask", stop)
        with pytest.raises(KeyboardInterrupt):
            candidates.run(ctx)
        assert not (tmp_path / "candidates" / "records.jsonl").exists(), "nothing half-written"
        assert len(list((tmp_path / "candidates" / "work" / "parts").iterdir())) == 2
        monkeypatch.setattr(common, "ask", ask)
    with Server(answer) as server:  # another one: what the first run still had in flight does not count here
        ctx = context("candidates", tmp_path, server)
        ctx.inputs = {name: root / name for name in ctx.inputs}
        candidates.run(ctx)
        assert sum(server.asked.values()) == 60 - 32
    assert (tmp_path / "candidates" / "records.jsonl").read_bytes() == (root / "candidates" / "records.jsonl").read_bytes()


def test_a_rerun_gives_the_same_ids(run: RUN, tmp_path: Path) -> None:
    root, _, _ = run
    with Server(answer) as server:
        run_until("seed", tmp_path, server)
    for name in ("tasks/prompts", "seed/records"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (root / f"{name}.jsonl").read_bytes()


def test_too_few_topics_for_the_counts_are_reported(tmp_path: Path) -> None:
    counts = {"seed": 5000, "root": 1, "candidates": 1, "revisions": 1, "synthesis": 1, "validation": 0, "test": 1}
    with Server(answer) as server, pytest.raises(UsageError, match=r"counts.seed asks for .* prompts.*give more topics"):
        run_until("tasks", tmp_path, server, counts=counts)


def test_no_topics_at_all(tmp_path: Path) -> None:
    from speedlit.synthesis.stages import topics

    with Server(answer) as server:
        ctx = context("topics", tmp_path, server)
        ctx.checker = None
        with pytest.raises(UsageError, match="topics.file is not set"):
            topics.run(ctx)


def test_synthesis_does_not_import_torch() -> None:
    code = "import sys, pkgutil, importlib, speedlit.synthesis as s\n"
    code += "[importlib.import_module(m.name) for m in pkgutil.walk_packages(s.__path__, 'speedlit.synthesis.')]\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
