"""The embedded teacher: brainstorms tasks, writes records, ranks candidates, criticises and revises, each with a noise knob.

It reads nothing but the messages, as any teacher would: the role is seen from the answer that is asked for, the task from the
``Task:`` or ``Topic:`` line, the kind from the JSON keys. So it serves the ``mini`` and the ``paper`` prompts and a user's own.
Every answer is a function of (messages, seed, sample index).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from speedlit.offline.checker import check, fields_of, verdict
from speedlit.offline.grammar import PLURAL, Statement, parse, render
from speedlit.offline.lexicon import ATTRIBUTES, KEYS, TASKS, TOPICS
from speedlit.offline.mending import DEFECTS, differences, mend, needless
from speedlit.offline.world import QUERY_STYLES, TEXT_STYLES, UNITS, Ask, World, kind_of, put, read_prompt, topic_of

_PROMPT = re.compile(r"<prompt>\n?(.*?)\n?</prompt>", re.DOTALL)
_RECORD = re.compile(r"<record>\n?(.*?)\n?</record>", re.DOTALL)
_CANDIDATE = re.compile(r"<candidate (\d+)>\n?(.*?)\n?</candidate \1>", re.DOTALL)
GENERIC = {
    "retrieval": "find pages about {topic} that answer a question",
    "classification": "tell which part of {topic} a text is about",
    "sts": "compare statements about {topic}",
    "s2s": "match short texts about {topic} that mean the same",
    "p2p": "match long texts about {topic} on the same matter",
}


@dataclass(frozen=True)
class Noise:
    """Share of answers that are spoilt, by role: a planted defect, a wrong ranking, a needless or missing edit."""

    writer: float = 0.03
    judge: float = 0.0
    critic: float = 0.0


class Teacher:
    """Answers chat messages out of a world.

    Args:
        world: whose facts it knows.
        noise: how often each role errs.
    """

    def __init__(self, world: World | None = None, noise: Noise | None = None) -> None:
        self.world, self.noise = world or World(), noise or Noise()

    def answer(self, messages: Sequence[Mapping[str, str]], seed: int | None = None, index: int = 0) -> str:
        """The reply to a conversation. The same messages, seed and sample index give the same reply."""
        text = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
        rng = random.Random(json.dumps([[m["role"], m["content"]] for m in messages]) + f"|{seed}|{index}")
        return self._role(text)(rng, text)

    def _role(self, text: str) -> Callable[[random.Random, str], str]:
        if '"worst"' in text:
            return self.judge
        if _RECORD.search(text) and ('"edits"' in text or '"revision"' in text):
            return self.criticise
        return self.write if kind_of(text) else self.brainstorm

    # ---------------------------------------------------------------------------------------------------- brainstorm
    def brainstorm(self, rng: random.Random, text: str) -> str:
        """A JSON list of task sentences, one per attribute of a known topic; generic ones for a topic of the real world."""
        line = re.search(r"^\s*Topic:[ \t]*(.+)$", text, re.MULTILINE)
        path = line.group(1).strip() if line else text.strip().splitlines()[-1]
        named = re.search(r"^\s*Kind:[ \t]*(\w+)", text, re.MULTILINE)
        kind = named.group(1) if named and named.group(1) in TASKS else "retrieval"
        topic = topic_of(path)
        if not topic:
            return json.dumps([GENERIC[kind].format(topic=path.rsplit("/", 1)[-1].replace("_", " "))])
        attributes = rng.sample(ATTRIBUTES, len(ATTRIBUTES))
        return json.dumps([rng.choice(TASKS[kind]).format(topic=PLURAL[topic], attribute=a) for a in attributes])

    # --------------------------------------------------------------------------------------------------------- write
    def write(self, rng: random.Random, text: str) -> str:
        """A record as JSON text; with the writer's noise, one with a planted defect."""
        ask = self.complete(rng, read_prompt(text))
        record = self.record(rng, ask)
        if rng.random() < self.noise.writer:
            return rng.choice(list(DEFECTS.values()))(self.world, rng, ask, record)
        return dump(ask.kind, record)

    def complete(self, rng: random.Random, ask: Ask) -> Ask:
        """Decide what the prompt leaves open."""
        topic = ask.topic or rng.choice(list(TOPICS))
        styles = {"retrieval": QUERY_STYLES, "classification": TEXT_STYLES, "sts": UNITS, "s2s": ("phrase",), "p2p": ("document",)}[ask.kind]
        facts = ask.facts or rng.randint(2 if ask.mention else 1, 3)
        return Ask(ask.kind, topic, ask.attribute or rng.choice(ATTRIBUTES), facts, ask.mention, ask.style if ask.style in styles else rng.choice(styles))

    def record(self, rng: random.Random, ask: Ask) -> list[Statement]:
        """Statements of a good record, in the order of the kind's keys."""
        world, topic, attribute = self.world, ask.topic, ask.attribute
        chosen = world.attributes(rng, ask.facts or 1, [attribute, ask.mention])
        concepts = world.draw(rng, topic, chosen)
        asked = {attribute: concepts[attribute]}
        wrong = {**concepts, attribute: world.concept(rng, topic, attribute, [concepts[attribute]])}
        if ask.kind == "retrieval":
            query = put(rng, topic, asked, ask.style)
            return [query, put(rng, topic, concepts, "document", query.facts), put(rng, topic, self._loosen(rng, ask, wrong), "document", query.facts)]
        if ask.kind == "classification":
            said = put(rng, topic, concepts, ask.style)
            return [said, put(rng, "", asked, "label", said.facts), put(rng, "", {attribute: wrong[attribute]}, "label")]
        first = put(rng, topic, concepts, ask.style)
        rest = [put(rng, topic, concepts, ask.style, first.facts)]
        return [first, *rest, put(rng, topic, self._loosen(rng, ask, wrong), ask.style, first.facts)] if ask.kind == "sts" else [first, *rest]

    def _loosen(self, rng: random.Random, ask: Ask, concepts: dict[str, int]) -> dict[str, int]:
        """A hard negative shares at least one fact; of three facts the one that nobody asked for may be another."""
        spare = [a for a in concepts if a not in (ask.attribute, ask.mention)]
        if len(concepts) < 3 or not spare or rng.random() < 0.5:
            return concepts
        drop = rng.choice(spare)
        new = rng.choice([a for a in ATTRIBUTES if a not in concepts])
        return {**{a: c for a, c in concepts.items() if a != drop}, new: self.world.concept(rng, ask.topic, new)}

    # --------------------------------------------------------------------------------------------------------- judge
    def judge(self, rng: random.Random, text: str) -> str:
        """``{"reason", "best", "worst", "scores"}`` over the numbered candidates; best equals worst where all are equal."""
        prompt = inner(_PROMPT, text)
        found = [(int(number), body) for number, body in _CANDIDATE.findall(text)]
        checks = [check(self.world, prompt, body) for _, body in found]
        scores = [c["score"] for c in checks]
        if self.noise.judge and rng.random() < self.noise.judge:
            rng.shuffle(scores)
        numbers = [number for number, _ in found] or [0]
        best = numbers[scores.index(max(scores))] if scores else 0
        worst = numbers[scores.index(min(scores))] if scores else 0
        lacks = [name for name, value in (checks[scores.index(min(scores))] if checks else {}).items() if not value and name not in ("good", "score")]
        reason = f"The worst one fails in: {', '.join(lacks)}." if lacks else "All of them follow the order."
        return json.dumps({"reason": reason, "best": best, "worst": worst, "scores": [round(s * 10 / 9.5, 2) for s in scores]})

    # ------------------------------------------------------------------------------------------------------ criticise
    def criticise(self, rng: random.Random, text: str) -> str:
        """``{"reason", "edits"}``, or ``{"reason", "revision"}`` where the prompt asks for the whole record."""
        prompt, body = inner(_PROMPT, text), inner(_RECORD, text)
        ask = read_prompt(prompt)
        fields = fields_of(ask.kind, body)
        if fields is None:
            fields, edits = self._rewrite(rng, ask)
        else:
            edits = self.edits(rng, ask, fields)
            fields = apply(fields, edits)
        reason = f"{len(edits)} of its words do not fit the order." if edits else "It follows the order."
        if '"edits"' in text.replace(body, ""):
            return json.dumps({"reason": reason, "edits": edits})
        return json.dumps({"reason": reason, "revision": fields})

    def _rewrite(self, rng: random.Random, ask: Ask) -> tuple[dict[str, str], list[list[str]]]:
        """An unreadable record can only be written anew; it has no edits."""
        return dict(zip(KEYS[ask.kind], map(render, self.record(rng, self.complete(rng, ask))), strict=True)), []

    def edits(self, rng: random.Random, ask: Ask, fields: Mapping[str, str]) -> list[list[str]]:
        """The smallest list of edits found that makes a record good; with the critic's noise, one that is left out or needless."""
        out: list[list[str]] = []
        if not verdict(self.world, ask, fields)["good"]:
            texts = list(fields.values())
            wanted = mend(self.world, rng, self.complete(rng, ask), [parse(t) for t in texts])
            out = [[key, *edit] for key, text, goal in zip(fields, texts, wanted, strict=True) for edit in differences(text, goal)]
        if self.noise.critic and rng.random() < self.noise.critic:
            return out[1:] if out else needless(rng, fields)
        return out


def inner(pattern: re.Pattern[str], text: str) -> str:
    """The text between two marks, or the whole text."""
    match = pattern.search(text)
    return match.group(1) if match else text


def dump(kind: str, statements: Sequence[Statement]) -> str:
    """A record's JSON text."""
    return json.dumps(dict(zip(KEYS[kind], map(render, statements), strict=True)))


def apply(fields: Mapping[str, str], edits: Sequence[Sequence[str]]) -> dict[str, str]:
    """Carry out edits: the first occurrence of each ``find`` is replaced."""
    out = dict(fields)
    for key, find, replace in edits:
        out[key] = out[key].replace(find, replace, 1)
    return out
