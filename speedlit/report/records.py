"""The records of a run for the page's browser: each prompt with its task, its answers, the judge's ranks, revisions, and what became of each.

A part holds about a thousand records with all that their lineage needs, as JSON, gzipped, in base64: the page unpacks one part after the
other. A run with more records than the page can hold shows all records of some prompts. Prompts are drawn by their id, a hash: the choice
is random, the same in every report, and needs no list of all ids.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speedlit.errors import UsageError
from speedlit.synthesis.lines import count_lines, rows

LIMIT = 50_000  # records on one page
PART = 1_000
HELD_OUT = ("test", "validation")
USES = ("synthetic", "root", "seed", *HELD_OUT)  # the list begins with what the loop is for


@dataclass(frozen=True)
class Source:
    """Where the records of one writer lie, and under which name the dataset stage knows them."""

    label: str
    stage: str
    suffix: str
    dataset: str = ""


SOURCES = (
    Source("teacher", "seed", "", "teacher"),
    Source("junior's candidates", "candidates", ""),
    Source("junior", "synthesis", "-junior", "junior"),
    Source("control", "synthesis", "-control"),
    Source("senior, then revisor", "synthesis", "-senior", "refined"),
)


@dataclass
class Chosen:
    """The prompts on the page: all whose id, read as a number, lies in the first ``share`` of the ids."""

    share: float
    prompts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of(self, path: Path, key: str) -> Iterator[dict[str, Any]]:
        """The rows of a file whose ``key`` is a chosen prompt; none where there is no such file."""
        return picked(path, key, self.holds) if path.is_file() else iter(())

    def holds(self, prompt: str) -> bool:
        """Whether a prompt is on the page."""
        try:
            return int(prompt, 16) < self.share * 2**64
        except ValueError:
            return False


def picked(path: Path, key: str, wanted: Callable[[str], bool], first: bool = False) -> Iterator[dict[str, Any]]:
    """The rows of a file whose ``key`` holds a wanted id; the others are not even parsed.

    Keys are sorted, and quotes inside of texts are escaped, so the row's own key is the last one on the line, or the ``first``.
    """
    mark = f'"{key}":"'.encode()

    def other(line: bytes) -> bool:
        at = (line.find(mark) if first else line.rfind(mark)) + len(mark)
        return at < len(mark) or not wanted(line[at : at + 16].decode("ascii", "replace"))

    return (row for _, row in rows(path, skip=other))


@dataclass(frozen=True)
class Browsed:
    """What the page gets: parts, how many records they hold, and how many there are."""

    parts: list[str]
    shown: int
    total: int


def browsed(folders: Mapping[str, Path], limit: int = LIMIT) -> Browsed:
    """The records of the finished stages, by their folders; at most about ``limit`` of them.

    Raises:
        UsageError: a file of records is missing or damaged.
    """
    used = [source for source in SOURCES if source.stage in folders] if "tasks" in folders else []
    total = sum(count_lines(path) for source in used for path in files(folders, source) if path.is_file())
    if not total or not limit:
        return Browsed([], 0, total)
    try:
        made = lineages(folders, used, Chosen(min(1.0, limit / total)))
    except (KeyError, TypeError, AttributeError) as error:
        what = f"lacks the key {error}" if isinstance(error, KeyError) else f"has a value of a wrong type ({error})"
        raise UsageError(f"a row of the records below {folders['tasks'].parent} {what}: redo its stage with `speedlit run --from STAGE`") from error
    return Browsed([packed(part) for part in parts(made)], sum(len(prompt["records"]) for prompt in made), total)


def lineages(folders: Mapping[str, Path], used: Sequence[Source], chosen: Chosen) -> list[dict[str, Any]]:
    """The chosen prompts that have answers, each with everything that is known of them."""
    read_prompts(folders["tasks"], chosen)
    for source in used:
        add_records(chosen, folders, source, SOURCES.index(source))
    add_ranks(chosen, folders)
    add_revisions(chosen, folders)
    add_fates(chosen, folders)
    made = [prompt for prompt in chosen.prompts.values() if prompt["records"]]
    return sorted(made, key=lambda prompt: USES.index(prompt["use"]) if prompt["use"] in USES else len(USES))


def files(folders: Mapping[str, Path], source: Source) -> tuple[Path, Path]:
    """The records of a source, and its answers that are none."""
    return folders[source.stage] / f"records{source.suffix}.jsonl", folders[source.stage] / f"rejected{source.suffix}.jsonl"


def read_prompts(folder: Path, chosen: Chosen) -> None:
    """The chosen prompts, with their tasks."""
    prompts = list(picked(folder / "prompts.jsonl", "id", chosen.holds, first=True))
    needed = {row["task_id"] for row in prompts}
    tasks = {row["id"]: row for row in picked(folder / "tasks.jsonl", "id", needed.__contains__, first=True)}
    for row in prompts:
        task = tasks.get(row["task_id"], {})
        chosen.prompts[row["id"]] = {
            "id": row["id"],
            "kind": row["kind"],
            "use": row["use"],
            "template": row["template"],
            "text": row["messages"][-1]["content"],
            "keys": row["keys"],
            "task": [row["task_id"], row["task"], task.get("group", row["group"]), row["split"]],
            "topic": [task.get("topic_id", ""), row["topic"]],
            "records": [],
        }


def add_records(chosen: Chosen, folders: Mapping[str, Path], source: Source, place: int) -> None:
    """The records of one source, and its answers that are no records."""
    records, rejected = files(folders, source)
    for row in chosen.of(records, "prompt_id"):
        if prompt := chosen.prompts.get(row["prompt_id"]):
            keys = prompt["keys"] = prompt["keys"] or sorted(row["fields"])
            prompt.setdefault("roles", [role(row, key) for key in keys])
            values = [row["fields"].get(key, "") for key in keys]
            prompt["records"].append({"id": row["id"], "g": row["generation_id"], "s": place, "f": values, "by": row["parsed_by"]})
    for row in chosen.of(rejected, "prompt_id"):
        if prompt := chosen.prompts.get(row["prompt_id"]):
            prompt["records"].append({"id": "", "g": row.get("generation_id", ""), "s": place, "x": row["text"], "why": row["reason"]})


def role(row: Mapping[str, Any], key: str) -> str:
    """What a field is to the embedder: query, positive, negative or nothing."""
    value = row["fields"].get(key)
    found = [name for name in ("query", "positive") if row[name] == value]
    return found[0] if found else "negative" if value in row["negatives"] else ""


def add_ranks(chosen: Chosen, folders: Mapping[str, Path]) -> None:
    """The judge's verdict on the candidates of each prompt."""
    if "preferences" not in folders:
        return
    for row in chosen.of(folders["preferences"] / "preferences.jsonl", "prompt_id"):
        prompt = chosen.prompts.get(row["prompt_id"])
        if prompt is None:
            continue
        scores = dict(zip(row["candidates"], row["scores"], strict=False))
        ranked = sorted(scores.values(), reverse=True)
        prompt["judge"] = row["reason"]
        for record in (record for record in prompt["records"] if record["id"] in row["candidates"]):
            record["verdict"] = "best" if record["id"] == row["chosen"] else "worst" if record["id"] == row["rejected"] else "between"
            if record["id"] in scores:
                record |= {"score": scores[record["id"]], "rank": ranked.index(scores[record["id"]]) + 1}


def add_revisions(chosen: Chosen, folders: Mapping[str, Path]) -> None:
    """What the critic made of candidates, and the revisor of the senior's records."""
    for stage in ("revisions", "refinement"):
        if stage not in folders:
            continue
        for row in chosen.of(folders[stage] / "revisions.jsonl", "prompt_id"):
            prompt = chosen.prompts.get(row["prompt_id"], {"records": []})
            for record in (record for record in prompt["records"] if record["id"] == row["record_id"]):
                record["revision"] = {"by": row["source"], "status": row["status"], "reason": row["reason"]}
                if row["status"] == "revised":
                    record["revision"]["after"] = [row["after"].get(key, "") for key in prompt["keys"]]


def add_fates(chosen: Chosen, folders: Mapping[str, Path]) -> None:
    """What became of each record: in the data set as a triplet, left out and why, best or worst for the judge, or for the tests alone."""
    known = {source.dataset: triplets_and_dropped(chosen, folders, source.dataset) for source in SOURCES if source.dataset and "dataset" in folders}
    refined = refined_ids(chosen, folders)
    for prompt in chosen.prompts.values():
        for record in prompt["records"]:
            source = SOURCES[record["s"]]
            triplets, dropped = known.get(source.dataset, ({}, {}))
            own = refined.get(record["g"], record["id"]) if source.dataset == "refined" else record["id"]
            if own in triplets:
                record["triplet"] = triplets[own]
            record["fate"] = fate(prompt, record, own, triplets, dropped)


def fate(prompt: Mapping[str, Any], record: Mapping[str, Any], own: str, triplets: Mapping[str, str], dropped: Mapping[str, str]) -> str:
    """In one or two words, the same for many records: the page filters by it."""
    if "why" in record:
        return f"no record: {record['why'].partition(':')[0]}"
    if own in triplets:
        return "in the data set"
    if own in dropped:
        return f"left out: {dropped[own]}"
    if prompt["use"] in HELD_OUT:
        return f"held out ({prompt['use']})"
    return {"best": "judged best", "worst": "judged worst", "between": "judged between"}.get(record.get("verdict", ""), "not in the data set")


def triplets_and_dropped(chosen: Chosen, folders: Mapping[str, Path], name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Record id to triplet id, and record id to the reason why it was left out, of one source of the dataset stage."""
    folder = folders["dataset"]
    triplets = {row["record_id"]: row["id"] for row in chosen.of(folder / f"triplets-{name}.jsonl", "prompt")}
    if not (folder / "dropped.jsonl").is_file():
        return triplets, {}
    return triplets, {row["record_id"]: row["reason"] for _, row in rows(folder / "dropped.jsonl") if row["source"] == name}


def refined_ids(chosen: Chosen, folders: Mapping[str, Path]) -> dict[str, str]:
    """Generation to the id that its record has after revision."""
    if "refinement" not in folders:
        return {}
    return {row["generation_id"]: row["id"] for row in chosen.of(folders["refinement"] / "records.jsonl", "prompt_id")}


def parts(prompts: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Prompts in parts of about ``PART`` records."""
    part: list[dict[str, Any]] = []
    held = 0
    for prompt in prompts:
        part.append(prompt)
        held += len(prompt["records"])
        if held >= PART:
            yield part
            part, held = [], 0
    if part:
        yield part


def packed(part: list[dict[str, Any]]) -> str:
    """JSON, gzipped (the same bytes every time), in base64."""
    text = json.dumps(part, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(errors="replace"), 6, mtime=0)).decode("ascii")
