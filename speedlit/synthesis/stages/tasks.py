"""Stage ``tasks``: topics become task sentences, tasks are split, and every prompt of the run is rendered before anything is sampled.

Splits go by group (a cell of the embedded world, else the topic), so that nothing a writer is tested on was near its training. No
text of a held-out prompt occurs among the others. Tasks are read from their file in the order in which they are wanted; what is kept
per task and prompt is a few hashes.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speedlit.context import Context, Request, Sampling
from speedlit.errors import UsageError
from speedlit.files import write_jsonl
from speedlit.records import Prompt, Task, Topic, read_rows, write_rows
from speedlit.synthesis.hashing import Places, order_key
from speedlit.synthesis.lines import Lines, count_lines, number, rows, spelled
from speedlit.synthesis.parsing import Rejected, parse_brainstorm
from speedlit.synthesis.stages.common import COUNTS, Outputs, ask, writer_sampling
from speedlit.synthesis.templates import PromptSet, Template, derived_random, derived_seed, load_set

USES = {"test": "test", "validation": "validation", "seed": "train", "root": "train", "synthetic": "train"}  # held-out uses first
FRUITLESS = 20  # rounds over all tasks that bring no new prompt, after which the space counts as used up
CELLS = 500  # tasks per question to the checker
Found = tuple[Topic, str, str]  # topic, kind and text of a task


def run(ctx: Context) -> None:
    """Write ``tasks.jsonl`` and ``prompts.jsonl``; refused brainstorms go to ``rejected.jsonl``.

    Raises:
        UsageError: the topics and templates do not give as many distinct prompts as the counts ask for.
    """
    templates = load_set(ctx.config["prompts"])
    found = itertools.chain(given(ctx, templates), brainstorm(ctx, templates))
    if ctx.shard != (0, 1):
        for _ in found:  # the journal takes the answers; the whole stage puts them together
            pass
        return
    drafts = ctx.out / "work" / "drafts.jsonl"
    groups = draft(ctx, found, drafts)
    splits: Counter[str] = Counter()
    ctx.ledger.notes["tasks"] = write_rows(ctx.out / "tasks.jsonl", counted(split(drafts, groups, ctx.config), splits, "split"))
    ctx.ledger.notes["split"] = {name: splits[name] for name in ("train", "validation", "test")}
    drafts.unlink()
    uses: Counter[str] = Counter()
    prompts = render(Tasks(ctx.out / "tasks.jsonl"), templates, ctx.config)
    ctx.ledger.accepted = write_rows(ctx.out / "prompts.jsonl", counted(prompts, uses, "use"))
    ctx.ledger.notes["uses"] = {use: uses[use] for use in USES}


def counted(items: Iterable[Any], counts: Counter[str], name: str) -> Iterator[Any]:
    """Pass items on and count them by one of their fields."""
    for item in items:
        counts[getattr(item, name)] += 1
        yield item


def given(ctx: Context, templates: PromptSet) -> Iterator[Found]:
    """The kinds whose task is the topic itself."""
    kinds = [kind for kind in templates if templates[kind].input == "topic"]
    return ((topic, kind, topic.path) for topic in read_rows(ctx.inputs["topics"] / "topics.jsonl", Topic) for kind in kinds)


def brainstorm(ctx: Context, templates: PromptSet) -> Iterator[Found]:
    """The teacher's task texts, of which ``tasks.per_topic`` are kept per topic and kind."""
    seed, kept = ctx.config["seed"], ctx.config["tasks"].get("per_topic", 1)
    kinds = [kind for kind in templates if templates[kind].input == "task"]
    topics = ctx.inputs["topics"] / "topics.jsonl"
    total = count_lines(topics) * len(kinds)
    with Outputs(ctx.out, "rejected") as out:
        for (topic, kind), _, reply in ask(ctx, "teacher", questions(ctx, templates, topics, kinds), "tasks: brainstorm", total):
            try:
                if reply.error:
                    raise Rejected(f"no_answer:{reply.error}")
                texts = parse_brainstorm(reply.text, reply.finish_reason)
            except Rejected as reason:
                ctx.ledger.reject(str(reason))
                out.write("rejected", {"topic_id": topic.id, "topic": topic.path, "kind": kind, "reason": str(reason), "text": reply.text})
                continue
            chosen = derived_random(seed, topic.id, kind, "keep").sample(range(len(texts)), min(kept, len(texts)))
            for text in dict.fromkeys(texts[i] for i in sorted(chosen)):
                yield topic, kind, text


def questions(ctx: Context, templates: PromptSet, topics: Path, kinds: Iterable[str]) -> Iterator[tuple[tuple[Topic, str], Request]]:
    """What is asked about each topic and kind."""
    seed, sampling = ctx.config["seed"], writer_sampling(ctx, "teacher")
    for topic in read_rows(topics, Topic):
        for kind in kinds:
            name = f"{topic.id}:{kind}"
            messages = templates.roles["brainstorm"].brainstorm(kind, topic.path, derived_random(seed, topic.id, kind))
            yield (topic, kind), Request(name, messages, Sampling(sampling.temperature, sampling.top_p, sampling.max_tokens, derived_seed(seed, name)))


def draft(ctx: Context, found: Iterable[Found], path: Path) -> Places:
    """Write the tasks with their groups to a working file; returns the distinct groups' order of the seed, as sorted hashes.

    A group is the checker's cell, or the topic where there is no checker.
    """
    keys = array("Q")

    def drafts() -> Iterator[dict[str, Any]]:
        source = iter(found)
        while block := list(itertools.islice(source, CELLS)):
            items = [{"topic": topic.path, "kind": kind, "text": text} for topic, kind, text in block]
            cells = ctx.checker("cells", {"tasks": items})["cells"] if ctx.checker else [topic.path for topic, _, _ in block]
            for (topic, _, _), item, cell in zip(block, items, cells, strict=True):
                keys.append(order_key(ctx.config["seed"], cell))
                yield {**item, "topic_id": topic.id, "group": cell}

    write_jsonl(path, drafts())
    return np.unique(np.array(keys, np.uint64))


def split(drafts: Path, groups: Places, config: Mapping[str, Any]) -> Iterator[Task]:
    """Give whole groups to train, validation and test by a hash of (seed, group); the shares are shares of the groups."""
    test, validation = (round(len(groups) * config["tasks"].get(name, 0.0)) for name in ("test", "validation"))
    for _, row in rows(drafts):
        place = int(np.searchsorted(groups, np.uint64(order_key(config["seed"], row["group"]))))
        name = "test" if place < test else "validation" if place < test + validation else "train"
        yield Task(row["topic_id"], row["topic"], row["kind"], row["text"], row["group"], name)


class Tasks:
    """A file of tasks, of which only ids and places are in memory, by kind and split."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[tuple[str, str], tuple[array[int], array[int]]] = defaultdict(lambda: (array("Q"), array("Q")))
        for start, row in rows(path):
            ids, places = self._found[row["kind"], row["split"]]
            ids.append(number(row["id"]))
            places.append(start)

    def ordered(self, kind: str, place: str, seed: int, use: str) -> Ordered:
        """The tasks of one kind and split, in an order that seed and use decide."""
        ids, places = self._found[kind, place]
        keys = np.array([order_key(seed, use, spelled(value)) for value in ids], np.uint64)
        return Ordered(self.path, np.array(places, np.int64)[np.argsort(keys, kind="stable")])


@dataclass(frozen=True)
class Ordered:
    """Tasks at some places of their file, read again each time they are gone through."""

    path: Path
    places: Places

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Task]:
        with Lines(self.path) as lines:
            for start in self.places.tolist():
                yield Task.from_json(lines[start])


class FlatSet:
    """Numbers of 64 bits in a table of at least twice as many places: a fifth of a set's memory.

    Args:
        most: how many there can be.
    """

    def __init__(self, most: int) -> None:
        self._mask = (1 << (2 * most).bit_length()) - 1
        self._table = array("Q", bytes(8 * (self._mask + 1)))

    def _place(self, value: int) -> int:
        place = value & self._mask
        while self._table[place] not in (0, value):
            place = (place + 1) & self._mask
        return place

    def __contains__(self, value: int) -> bool:
        return self._table[self._place(value or 1)] != 0

    def add(self, value: int) -> None:
        """Take one more."""
        self._table[self._place(value or 1)] = value or 1


def render(tasks: Tasks, templates: PromptSet, config: Mapping[str, Any]) -> Iterator[Prompt]:
    """All prompts: kinds in the proportion of their shares, distinct within a use, and no held-out text in another use."""
    totals = {use: config["counts"].get(COUNTS.get(use, use)) or 0 for use in USES}
    held_out = FlatSet(sum(totals[use] for use, place in USES.items() if place != "train"))
    for use, place in USES.items():
        seen = FlatSet(totals[use]) if place == "train" else held_out
        for kind, count in templates.shares(totals[use]).items():
            if count:
                yield from draw(tasks.ordered(kind, place, config["seed"], use), templates[kind], use, count, config["seed"], seen, held_out)


def draw(
    tasks: Ordered | Sequence[Task], template: Template, use: str, count: int, seed: int, seen: FlatSet | set[int], held_out: FlatSet | set[int]
) -> Iterator[Prompt]:
    """``count`` distinct prompts of one kind: round after round over all tasks, in their order.

    Raises:
        UsageError: the tasks and the template's knobs give no more.
    """
    made = index = fruitless = 0
    while made < count and tasks and fruitless < FRUITLESS:
        before = made
        for task in tasks:
            messages, knobs = template.render(task.text, task.topic, derived_random(seed, task.id, use, index))
            digest = int.from_bytes(hashlib.sha256(messages[-1]["content"].encode()).digest()[:8], "big")
            if digest in seen or digest in held_out:
                continue
            seen.add(digest)
            made += 1
            source = (task.id, task.kind, task.text, task.topic, task.group, task.split)
            yield Prompt(*source, use, index, template.ref, knobs, messages, list(template.fields))
            if made == count:
                return
        index += 1
        fruitless = fruitless + 1 if made == before else 0
    if made < count:
        raise UsageError(
            f"counts.{COUNTS.get(use, use)} asks for {count} {template.kind} prompts of use {use}, but {len(tasks)} tasks give only {made} distinct ones: "
            f"give more topics, raise tasks.per_topic{'' if USES[use] == 'train' else ' or tasks.' + use}, or lower the count"
        )
