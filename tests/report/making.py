"""Finished stages of a made-up run, written by hand: small, and as hostile as the tests want."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from speedlit.files import content_id, write_jsonl
from speedlit.records import Generation, Preference, Prompt, Record, Revision, Task, Topic, Triplet
from speedlit.synthesis.quality.alarms import levels_of

KEYS = ["user_query", "positive_document", "hard_negative_document"]
STAGES = ("topics", "tasks", "seed", "junior", "candidates", "preferences", "senior", "revisions", "synthesis", "refinement", "dataset")


def folders_of(root: Path) -> dict[str, Path]:
    """The stages' folders, as the loop names them."""
    from speedlit.pipeline.loop import stages

    return {name: stages()[name].folder(root) for name in STAGES}


def record(prompt: Prompt, source: str, index: int, texts: tuple[str, str, str]) -> Record:
    """One record with the lineage that its ids say."""
    generation = Generation(prompt.id, source, index, " ".join(texts))
    return Record(generation.id, prompt.id, "retrieval", prompt.task, dict(zip(KEYS, texts, strict=True)), *texts[:2], [texts[2]], source=source, index=index)


def make_run(root: Path, said: str = "a whale", task: str = "find whales", topic: str = "Science/Whales", reason: str = "says more") -> dict[str, Path]:
    """Two prompts: one root prompt with three ranked candidates and a failed answer, and one whose record was revised into a triplet."""
    folders = folders_of(root)
    where = Topic(topic)
    what = Task(where.id, topic, "retrieval", task, "whale/colour", "train")
    asked = [
        Prompt(what.id, "retrieval", task, topic, what.group, "train", use, 0, "mini/retrieval@1", {}, [{"role": "user", "content": f"{task} {use}"}], KEYS)
        for use in ("root", "synthetic")
    ]
    pool = [record(asked[0], "junior", i, (f"which {said} {i}", f"the {said} {i} is blue", f"the {said} {i} is red")) for i in range(3)]
    order = Preference(asked[0].id, pool[2].id, pool[1].id, [pool[0].id, pool[1].id, pool[2].id], [5.0, 1.5, 9.0], reason)
    before = record(asked[1], "senior", 0, (f"where is {said}", f"{said} is near the old harbour", f"{said} is far away"))
    mended = f"{said} is near the new harbour"
    after = replace(before, fields={**before.fields, "positive_document": mended}, positive=mended, parsed_by="revised", source="refined")
    edits = [["positive_document", "old", "new"]]
    change = Revision(before.id, asked[1].id, "retrieval", "revisor", before.fields, after.fields, edits, "revised", reason)
    lineage = {"topic": where.id, "task": what.id, "prompt": asked[1].id, "generation": after.generation_id, "record": after.id, "revision": change.id}
    triplet = Triplet(after.id, "retrieval", task, after.query, after.positive, after.negatives, "refined", lineage)
    failed = {"generation_id": content_id("failed"), "kind": "retrieval", "prompt_id": asked[0].id, "reason": "not_json", "text": f"no JSON: {said}"}
    rows: dict[str, list[Any]] = {
        "tasks/prompts": asked, "tasks/tasks": [what], "candidates/records": pool, "preferences/preferences": [order], "synthesis/records-senior": [before],
        "refinement/records": [after], "refinement/revisions": [change], "dataset/triplets-refined": [triplet],
    }  # fmt: skip
    for name, made in rows.items():
        stage, file = name.split("/")
        write_jsonl(folders[stage] / f"{file}.jsonl", (row.to_json() for row in made))
    write_jsonl(folders["candidates"] / "rejected.jsonl", [failed])
    return {name: folders[name] for name in ("tasks", "candidates", "preferences", "synthesis", "refinement", "dataset")}


def make_many(root: Path, count: int) -> dict[str, Path]:
    """``count`` candidates, five to a prompt."""
    folders = folders_of(root)
    what = Task("0" * 16, "Science/Whales", "retrieval", "find whales", "whale/colour", "train")
    prompts, records = [], []
    for place in range(count // 5):
        text, name = f"write number {place}", content_id(place)
        prompts.append({"id": name, "task_id": what.id, "task": what.text, "topic": what.topic, "kind": "retrieval", "group": what.group, "split": "train"})
        prompts[-1] |= {"use": "root", "template": "mini/retrieval@1", "messages": [{"role": "user", "content": text}], "keys": KEYS}
        for index in range(5):
            texts = (f"query {place} {index}", f"answer {place} {index}", f"other {place} {index}")
            records.append({"id": f"{5 * place + index:016x}", "generation_id": name, "prompt_id": name, "fields": dict(zip(KEYS, texts, strict=True))})
            records[-1] |= {"query": texts[0], "positive": texts[1], "negatives": [texts[2]], "parsed_by": "strict"}
    write_jsonl(folders["tasks"] / "tasks.jsonl", [what.to_json()])
    write_jsonl(folders["tasks"] / "prompts.jsonl", prompts)
    write_jsonl(folders["candidates"] / "records.jsonl", records)
    return {name: folders[name] for name in ("tasks", "candidates")}


def make_summary(**quality: Any) -> dict[str, Any]:
    """The summary of a run that has come as far as the candidates."""
    stage = {"accepted": 0, "cached": 0, "calls": 0, "generated": 0, "rejected": {}, "seconds": 2.0, "tokens_in": 0, "tokens_out": 0, "notes": {}}
    measured = {"quality": {"seed": {"alarms": ["label_leak"], "label_leak": 0.4, "duplicates": 0.0, **quality}}}
    return {
        "stages": {
            "topics": {**stage, "accepted": 24},
            "tasks": {**stage, "accepted": 860, "calls": 120, "tokens_in": 4_000, "tokens_out": 6_800, "notes": {"tasks": 720}},
            "seed": {**stage, "accepted": 600, "calls": 600, "tokens_in": 17_000, "tokens_out": 25_000, "notes": measured},
        },
        "levels": levels_of(None),
        "alarms": [{"stage": "seed", "of": "seed", "measure": "label_leak", "value": 0.4}],
    }
