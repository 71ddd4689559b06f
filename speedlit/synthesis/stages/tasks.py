"""Stage ``tasks``: topics become task sentences, tasks are split, and every prompt of the run is rendered before anything is sampled.

Splits go by group (a cell of the embedded world, else the topic), so that nothing a writer is tested on was near its training. No
text of a held-out prompt occurs among the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from speedlit.context import Context, Request, Sampling
from speedlit.errors import UsageError
from speedlit.records import Prompt, Task, Topic, read_rows, write_rows
from speedlit.synthesis.parsing import Rejected, parse_brainstorm
from speedlit.synthesis.stages.common import Outputs, ask, writer_sampling
from speedlit.synthesis.templates import PromptSet, Template, derived_random, derived_seed, load_set

USES = {"test": "test", "validation": "validation", "seed": "train", "root": "train", "synthetic": "train"}  # held-out uses first
COUNTS = {"synthetic": "synthesis"}  # uses whose count has another name in the config
FRUITLESS = 20  # rounds over all tasks that bring no new prompt, after which the space counts as used up
CELLS = 500  # tasks per question to the checker


def run(ctx: Context) -> None:
    """Write ``tasks.jsonl`` and ``prompts.jsonl``; refused brainstorms go to ``rejected.jsonl``.

    Raises:
        UsageError: the topics and templates do not give as many distinct prompts as the counts ask for.
    """
    templates = load_set(ctx.config["prompts"])
    topics = list(read_rows(ctx.inputs["topics"] / "topics.jsonl", Topic))
    found = brainstorm(ctx, templates, topics)
    if ctx.shard != (0, 1):
        return  # the journal has the answers; the whole stage puts them together
    tasks = split(found, groups(ctx, found), ctx.config)
    ctx.ledger.notes["tasks"] = write_rows(ctx.out / "tasks.jsonl", tasks)
    ctx.ledger.notes["split"] = {name: sum(task.split == name for task in tasks) for name in ("train", "validation", "test")}
    prompts = list(render(tasks, templates, ctx.config))
    ctx.ledger.notes["uses"] = {use: sum(prompt.use == use for prompt in prompts) for use in USES}
    ctx.ledger.accepted = write_rows(ctx.out / "prompts.jsonl", prompts)


def brainstorm(ctx: Context, templates: PromptSet, topics: Sequence[Topic]) -> list[tuple[Topic, str, str]]:
    """Task texts as (topic, kind, text): the teacher's, of which ``tasks.per_topic`` are kept, or the topic itself."""
    seed, kept = ctx.config["seed"], ctx.config["tasks"].get("per_topic", 1)
    wanted = [(topic, kind) for topic in topics for kind in templates if templates[kind].input == "task"]
    by_id = {f"{topic.id}:{kind}": (topic, kind) for topic, kind in wanted}
    sampling = writer_sampling(ctx, "teacher")
    requests = []
    for name, (topic, kind) in by_id.items():
        messages = templates.roles["brainstorm"].brainstorm(kind, topic.path, derived_random(seed, topic.id, kind))
        requests.append(Request(name, messages, Sampling(sampling.temperature, sampling.top_p, sampling.max_tokens, derived_seed(seed, name))))
    found = [(topic, kind, topic.path) for topic in topics for kind in templates if templates[kind].input == "topic"]
    with Outputs(ctx.out, "rejected") as out:
        for request, reply in ask(ctx, "teacher", requests, "tasks: brainstorm"):
            topic, kind = by_id[request.id]
            try:
                if reply.error:
                    raise Rejected(f"no_answer:{reply.error}")
                texts = parse_brainstorm(reply.text, reply.finish_reason)
            except Rejected as reason:
                ctx.ledger.reject(str(reason))
                out.write("rejected", {"topic_id": topic.id, "topic": topic.path, "kind": kind, "reason": str(reason), "text": reply.text})
                continue
            chosen = derived_random(seed, topic.id, kind, "keep").sample(range(len(texts)), min(kept, len(texts)))
            found += [(topic, kind, texts[i]) for i in sorted(chosen)]
    return found


def groups(ctx: Context, found: Sequence[tuple[Topic, str, str]]) -> list[str]:
    """The group of each task: the checker's cell, or its topic where there is no checker."""
    if ctx.checker is None:
        return [topic.path for topic, _, _ in found]
    cells: list[str] = []
    for start in range(0, len(found), CELLS):
        items = [{"topic": topic.path, "kind": kind, "text": text} for topic, kind, text in found[start : start + CELLS]]
        cells += ctx.checker("cells", {"tasks": items})["cells"]
    return cells


def split(found: Sequence[tuple[Topic, str, str]], cells: Sequence[str], config: Mapping[str, Any]) -> list[Task]:
    """Give whole groups to train, validation and test by a hash of (seed, group); the shares are shares of the groups."""
    order = sorted(set(cells), key=lambda cell: hashlib.sha256(f"{config['seed']}:{cell}".encode()).digest())
    test, validation = (round(len(order) * config["tasks"].get(name, 0.0)) for name in ("test", "validation"))
    place = {cell: "test" if i < test else "validation" if i < test + validation else "train" for i, cell in enumerate(order)}
    tasks = [Task(topic.id, topic.path, kind, text, cell, place[cell]) for (topic, kind, text), cell in zip(found, cells, strict=True)]
    return list({task.id: task for task in tasks}.values())


def render(tasks: Sequence[Task], templates: PromptSet, config: Mapping[str, Any]) -> Iterator[Prompt]:
    """All prompts: kinds in the proportion of their shares, distinct within a use, and no held-out text in another use."""
    held_out: set[bytes] = set()
    for use, place in USES.items():
        total = config["counts"].get(COUNTS.get(use, use)) or 0
        seen: set[bytes] = set()
        for kind, count in templates.shares(total).items():
            of_kind = [task for task in tasks if task.kind == kind and task.split == place]
            yield from draw(of_kind, templates[kind], use, count, config["seed"], seen, held_out)
        if place != "train":
            held_out |= seen


def draw(tasks: Sequence[Task], template: Template, use: str, count: int, seed: int, seen: set[bytes], held_out: set[bytes]) -> Iterator[Prompt]:
    """``count`` distinct prompts of one kind: round after round over all tasks, in an order of the seed.

    Raises:
        UsageError: the tasks and the template's knobs give no more.
    """
    order = sorted(tasks, key=lambda task: hashlib.sha256(f"{seed}:{use}:{task.id}".encode()).digest())
    made = index = fruitless = 0
    while made < count and order and fruitless < FRUITLESS:
        before = made
        for task in order:
            messages, knobs = template.render(task.text, task.topic, derived_random(seed, task.id, use, index))
            digest = hashlib.sha256(messages[-1]["content"].encode()).digest()[:8]
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
            f"counts.{COUNTS.get(use, use)} asks for {count} {template.kind} prompts of use {use}, but {len(order)} tasks give only {made} distinct ones: "
            f"give more topics, raise tasks.per_topic{'' if USES[use] == 'train' else ' or tasks.' + use}, or lower the count"
        )
