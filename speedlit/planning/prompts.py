"""The prompts that a run would send, rendered as a sample and measured.

The sample uses the config's own templates, knobs and topics. Tasks are not brainstormed, since that would be paid: the brainstorm
template's example tasks stand in for them. Answers are not known either: their mean lengths are assumed (``plan.answer_tokens``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from speedlit.pipeline.config import RunConfig
from speedlit.planning.tokens import Meter
from speedlit.synthesis.templates import PromptSet, RoleTemplate, derived_random

SAMPLE = 40  # prompts of each kind
# Mean tokens of an answer. Ours: about half of what the knobs ask for; with them a call takes about the paper's 400, 1,200 and 1,000 tokens (its Table 5).
ANSWERS = {"retrieval": 330, "classification": 100, "sts": 85, "s2s": 40, "p2p": 450, "brainstorm": 110, "other": 200}
REASON = 50  # tokens of a judge's or critic's reason, with the keys around it
EDITS = 40  # tokens of a list of edits


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of what one kind, or a mix of kinds, sends and gets.

    Attributes:
        prompt: of a writer's prompt, ``record`` of its answer.
        judge: of the judge's prompt, ``critique`` of the critic's and ``revise`` of the revisor's, the records in them included.
    """

    prompt: float
    record: float
    judge: float
    critique: float
    revise: float


def lengths(config: RunConfig, templates: PromptSet, topics: Sequence[str], meter: Meter) -> dict[str, Lengths]:
    """Lengths of each kind, as ``meter`` counts them."""
    return {kind: _lengths(config, templates, kind, topics, meter) for kind in templates}


def _lengths(config: RunConfig, templates: PromptSet, kind: str, topics: Sequence[str], meter: Meter) -> Lengths:
    roles, k = templates.roles, config.counts.candidates
    record = float(answer_tokens(config, kind))
    rows = []
    for index in range(SAMPLE):
        topic = topics[index * max(len(topics) // SAMPLE, 1) % len(topics)]
        rng = derived_random(config.seed, "plan", kind, index)
        messages, _ = templates[kind].render(stand_in_task(roles["brainstorm"], kind, topic, index), topic, rng)
        prompt, text = _count(meter, messages), messages[-1]["content"]
        judge = _count(meter, roles["judge"].judge(text, [""] * k)) + k * record
        critique = _count(meter, roles["critique"].revision(text, "", config.revision)) + record
        revise = _count(meter, roles["revise"].revision(text, "", config.revision)) + record
        rows.append((prompt, judge, critique, revise))
    prompt, judge, critique, revise = (sum(column) / SAMPLE for column in zip(*rows, strict=True))
    return Lengths(prompt, record, judge, critique, revise)


def _count(meter: Meter, messages: Sequence[Mapping[str, str]]) -> int:
    return sum(meter.count(message["content"]) for message in messages)


def answer_tokens(config: RunConfig, kind: str) -> int:
    """Assumed mean tokens of an answer, never above what may be written."""
    table = {**ANSWERS, **config.plan.answer_tokens}
    return min(table.get(kind, table["other"]), config.teacher.max_tokens)


def stand_in_task(brainstorm: RoleTemplate, kind: str, topic: str, index: int) -> str:
    """A task sentence of the brainstorm's examples; where it has none, its own description of the kind."""
    spec = brainstorm.kinds.get(kind, {})
    examples = list(spec.get("examples", ()))
    return str(examples[index % len(examples)]) if examples else f"{spec.get('what', kind)} such as {topic.rsplit('/', 1)[-1]}"


def brainstorm_length(config: RunConfig, templates: PromptSet, topics: Sequence[str], meter: Meter) -> float:
    """Mean tokens of a brainstorm's prompt; 0 where no kind needs one."""
    kinds = task_kinds(templates)
    sizes = [
        _count(meter, templates.roles["brainstorm"].brainstorm(kind, topic, derived_random(config.seed, "plan", kind)))
        for kind in kinds
        for topic in topics[:SAMPLE]
    ]
    return sum(sizes) / len(sizes) if sizes else 0.0


def task_kinds(templates: PromptSet) -> list[str]:
    """Kinds whose input is a brainstormed task."""
    return [kind for kind in templates if templates[kind].input == "task"]


def mix(by_kind: Mapping[str, Lengths], shares: Mapping[str, int]) -> Lengths:
    """The mean over kinds by their shares."""
    total = max(sum(shares.values()), 1)
    names = Lengths.__dataclass_fields__
    return Lengths(**{name: sum(getattr(by_kind[kind], name) * count for kind, count in shares.items()) / total for name in names})
