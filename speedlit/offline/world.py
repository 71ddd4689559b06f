"""A procedural world in plain English whose facts are known exactly.

24 topics x 6 attributes = 144 *cells*; each cell admits 8 of the attribute's 16 concepts (Zipf weights: some are common,
some rare). That is the world knowledge which a base model learns from ``corpus.py`` and the checker tests.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from speedlit.offline.grammar import FORMS, PLURAL, Statement
from speedlit.offline.lexicon import ATTRIBUTES, CONCEPTS, KEYS, NAMES, TASKS, TOPICS

ADMITTED = 8
QUERY_STYLES = ("question", "keywords", "request")
TEXT_STYLES = ("statement", "diary")
UNITS = ("statement", "phrase")


@dataclass(frozen=True)
class Ask:
    """What a prompt asks for. None or "" means that the prompt doesn't say."""

    kind: str
    topic: str = ""
    attribute: str = ""
    facts: int | None = None
    mention: str = ""
    style: str = ""


class World:
    """Which concepts each (topic, attribute) admits, and how statements are drawn.

    Args:
        seed: decides every fact of the world; the shipped base model knows world 0.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        rng = random.Random(f"speedlit world {seed}")
        self.admitted = {(t, a): tuple(rng.sample(range(len(CONCEPTS[a])), ADMITTED)) for t in TOPICS for a in ATTRIBUTES}
        self._weights = [1.0 / (rank + 1) for rank in range(ADMITTED)]

    @cached_property
    def cells(self) -> tuple[str, ...]:
        """All cells as ``topic/attribute``."""
        return tuple(f"{t}/{a}" for t in TOPICS for a in ATTRIBUTES)

    def plausible(self, topic: str, attribute: str, concept: int) -> bool:
        """Whether things of this topic can have this concept."""
        return concept in self.admitted[topic, attribute]

    def concept(self, rng: random.Random, topic: str, attribute: str, without: Sequence[int] = ()) -> int:
        """Draw an admitted concept by the Zipf weights."""
        pairs = [(c, w) for c, w in zip(self.admitted[topic, attribute], self._weights, strict=True) if c not in without]
        return rng.choices([c for c, _ in pairs], [w for _, w in pairs])[0]

    def attributes(self, rng: random.Random, count: int, first: Sequence[str] = ()) -> list[str]:
        """``count`` attributes that contain ``first``."""
        chosen = list(dict.fromkeys(a for a in first if a))[:count]
        rest = [a for a in ATTRIBUTES if a not in chosen]
        return chosen + rng.sample(rest, max(count - len(chosen), 0))

    def draw(self, rng: random.Random, topic: str, attributes: Sequence[str]) -> dict[str, int]:
        """A thing: attribute -> concept."""
        return {a: self.concept(rng, topic, a) for a in attributes}


def put(rng: random.Random, topic: str, concepts: Mapping[str, int], style: str, unlike: Mapping[str, str] | None = None) -> Statement:
    """Put concepts into words, with another form than ``unlike`` uses for the same attribute."""
    avoid = unlike or {}
    facts = {a: rng.choice([f for f in FORMS[a, c] if f != avoid.get(a)]) for a, c in concepts.items()}
    return Statement(topic, facts, style, rng.choice(NAMES) if style == "document" else "")


# -------------------------------------------------------------------------------------------------- reading prompts
_NOUN = {**{t: t for t in TOPICS}, **{p: t for t, p in PLURAL.items()}}
_LEAF = {path.rsplit("/", 1)[1].lower(): topic for topic, path in TOPICS.items()}
_WORD = re.compile(r"[A-Za-z]+")
_FACTS = re.compile(r"\b([1-9]) facts?\b")
_MENTION = re.compile(r"\b(?:mention|including|with) the (\w+)\b", re.IGNORECASE)
_STYLE = re.compile(r"\bas (?:an? )?(question|keywords|request|statement|diary|phrase)\b")


def topic_of(path: str) -> str:
    """The world's topic for a path (matched by its leaf), or ""."""
    return _LEAF.get(path.strip().rstrip("/").rsplit("/", 1)[-1].lower(), "")


def subject(text: str) -> tuple[str, str]:
    """Topic and attribute named in a task sentence or a path; "" where there is none."""
    words = [w.lower() for w in _WORD.findall(text)]
    topic = next((_NOUN[w] for w in words if w in _NOUN), "")
    attribute = next((w for w in words if w in ATTRIBUTES), "")
    return topic, attribute


def cell(topic: str, kind: str, text: str) -> str:
    """The group of a task: ``topic/attribute``, or the topic's path where the sentence names no attribute of the world."""
    noun, attribute = subject(text)
    noun = noun or topic_of(topic)
    return f"{noun}/{attribute}" if noun and attribute else topic


def kind_of(text: str) -> str:
    """The task kind whose JSON keys a text names, or "". Long and short matching share keys and differ in the word ``notes``."""
    for kind in ("retrieval", "classification", "sts"):
        if all(re.search(rf"\b{key}\b", text) for key in KEYS[kind]):
            return kind
    if all(re.search(rf"\b{key}\b", text) for key in KEYS["s2s"]):
        return "p2p" if re.search(r"\b(notes|long)\b", text) else "s2s"
    return ""


def read_prompt(text: str) -> Ask:
    """What a rendered generation prompt asks for, in the ``mini`` or the ``paper`` wording."""
    task = re.search(r"^.*?\b(?:Task|Topic|task|topic)\b[^:\n]*:[ \t]*(.+)$", text, re.MULTILINE)
    topic, attribute = subject(task.group(1) if task else text)
    facts, mention, style = _FACTS.search(text), _MENTION.search(text), _STYLE.search(text)
    mentioned = mention.group(1) if mention and mention.group(1) in ATTRIBUTES else ""
    return Ask(kind_of(text), topic, attribute, int(facts.group(1)) if facts else None, mentioned, style.group(1) if style else "")


def task_sentences(topic: str, kind: str) -> list[str]:
    """Every task sentence of a kind about one of the world's topics, attribute by attribute."""
    return [form.format(topic=PLURAL[topic], attribute=attribute) for form in TASKS[kind] for attribute in ATTRIBUTES]
