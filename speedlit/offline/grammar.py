"""The world's English: facts to sentences and back. Every sentence is one frame around one noun phrase.

A *fact* is (attribute, form): ``("colour", "crimson")``. A *statement* is a topic, its facts and the frame ("style") it is
put in. ``render`` writes a statement; ``parse`` reads one, or returns None when the text is not in the grammar.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from speedlit.offline.lexicon import ADJECTIVES, CONCEPTS, NAMES, PHRASES, TOPICS

FORM: dict[str, tuple[str, int]] = {
    form: (attribute, number) for attribute, rows in CONCEPTS.items() for number, row in enumerate(rows) for form in row.split()
}
FORMS: dict[tuple[str, int], tuple[str, ...]] = {
    (attribute, number): tuple(row.split()) for attribute, rows in CONCEPTS.items() for number, row in enumerate(rows)
}
PLURAL: dict[str, str] = {topic: topic + "s" for topic in TOPICS}
ARTICLES = ("a", "an", "the")

# style -> pattern around {np} (a noun phrase with article), {bare} (noun first, then predicates) and {name}.
FRAMES: dict[str, str] = {
    "question": "Which {noun} is {predicate}?",
    "keywords": "{noun}, {predicate}",
    "request": "I want {np}.",
    "document": "{name} is {np}.",
    "statement": "There is {np}.",
    "diary": "Today I saw {np}.",
    "phrase": "{np}",
    "label": "{attribute}: {form}",
}
_PREFIX: tuple[tuple[str, str, str], ...] = (("request", "I want ", "."), ("statement", "There is ", "."), ("diary", "Today I saw ", "."))
_QUESTION = re.compile(r"^Which (\w+) is ([\w ]+)\?$")
_KEYWORDS = re.compile(r"^(\w+), ([\w ]+)$")
_DOCUMENT = re.compile(r"^(\w+) is ((?:a|an|the) [\w ]+)\.$")
_LABEL = re.compile(r"^(\w+): (\w+)$")


@dataclass(frozen=True)
class Statement:
    """What a text says: ``topic`` ("" for a label), ``facts`` as attribute -> form, the frame's ``style``, and ``name``."""

    topic: str
    facts: Mapping[str, str]
    style: str
    name: str = ""

    def concept(self, attribute: str) -> int | None:
        """Number of the concept stated for an attribute, or None."""
        form = self.facts.get(attribute)
        return None if form is None else FORM[form][1]

    def concepts(self) -> dict[str, int]:
        """attribute -> concept number."""
        return {attribute: FORM[form][1] for attribute, form in self.facts.items()}


def article(word: str) -> str:
    """``a`` or ``an``."""
    return "an" if word[0] in "aeiou" else "a"


def predicate(facts: Mapping[str, str]) -> str:
    """Facts as they stand behind a verb: ``crimson near the woods``."""
    words = [facts[a] for a in ADJECTIVES if a in facts]
    return " ".join(words + [phrase(a, facts[a]) for a in PHRASES if a in facts])


def phrase(attribute: str, form: str) -> str:
    """A fact as it stands behind the noun: ``near the woods``."""
    lead = PHRASES[attribute]
    return f"{lead[:-2]} {article(form)} {form}" if lead.endswith(" a") else f"{lead} {form}"


def noun_phrase(topic: str, facts: Mapping[str, str]) -> str:
    """``a crimson wooden boat near the woods``."""
    words = [*(facts[a] for a in ADJECTIVES if a in facts), topic]
    return " ".join([article(words[0]), *words, *(phrase(a, facts[a]) for a in PHRASES if a in facts)])


def render(statement: Statement) -> str:
    """The statement's text."""
    if statement.style == "label":
        ((attribute, form),) = statement.facts.items()
        return FRAMES["label"].format(attribute=attribute, form=form)
    parts = {"noun": statement.topic, "np": noun_phrase(statement.topic, statement.facts), "predicate": predicate(statement.facts), "name": statement.name}
    return FRAMES[statement.style].format(**parts)


def parse(text: str) -> Statement | None:
    """Read one text; None when it isn't in the grammar. ``a`` and ``an`` are taken for each other."""
    if match := _LABEL.match(text):
        attribute, form = match.groups()
        return Statement("", {attribute: form}, "label") if FORM.get(form, ("", 0))[0] == attribute else None
    if match := _QUESTION.match(text):
        return _with_predicate(match.group(1), match.group(2), "question")
    if match := _KEYWORDS.match(text):
        return _with_predicate(match.group(1), match.group(2), "keywords")
    for style, prefix, suffix in _PREFIX:
        if text.startswith(prefix) and text.endswith(suffix):
            return _noun_phrase(text[len(prefix) : -len(suffix)], style)
    if match := _DOCUMENT.match(text):
        return _noun_phrase(match.group(2), "document", match.group(1)) if match.group(1) in NAMES else None
    return _noun_phrase(text, "phrase")


def _with_predicate(topic: str, words: str, style: str) -> Statement | None:
    facts = _facts(words.split())
    return Statement(topic, facts, style) if facts and topic in TOPICS else None


def _noun_phrase(text: str, style: str, name: str = "") -> Statement | None:
    words = text.split(" ")
    at = next((i for i, word in enumerate(words) if word in TOPICS), 0)
    if at == 0 or words[0] not in ARTICLES:
        return None
    before, after = words[1:at], words[at + 1 :]
    if any(FORM.get(word, ("",))[0] not in ADJECTIVES for word in before):
        return None
    facts = _facts(before + after, adjectives=len(before))
    return None if facts is None else Statement(words[at], facts, style, name)


def _facts(words: list[str], adjectives: int | None = None) -> dict[str, str] | None:
    """Read adjectives, then phrases; None on an unknown word, a broken phrase or an attribute said twice."""
    facts: dict[str, str] = {}
    i = 0
    while i < len(words):
        attribute = FORM.get(words[i], ("",))[0]
        if attribute in ADJECTIVES and (adjectives is None or i < adjectives):
            form, i = words[i], i + 1
        else:
            found = _phrase_at(words, i)
            if found is None:
                return None
            attribute, form, i = found
        if attribute in facts:
            return None
        facts[attribute] = form
    return facts


def _phrase_at(words: list[str], i: int) -> tuple[str, str, int] | None:
    for attribute, lead in PHRASES.items():
        parts = lead.split()
        got = ["a" if word == "an" else word for word in words[i : i + len(parts)]]
        end = i + len(parts)
        if got == parts and end < len(words) and FORM.get(words[end], ("",))[0] == attribute:
            return attribute, words[end], end + 1
    return None
