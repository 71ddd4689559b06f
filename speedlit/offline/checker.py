"""The exact checker: what is right and what is wrong with a record, given the prompt that asked for it.

Eight checks, each 0 or 1, all 0 for a text that isn't a record:

- ``valid``: the JSON parses, has exactly the kind's keys, and every text is a sentence of the world.
- ``ontask``: every text is about the prompt's topic, states the asked attribute and the one to be mentioned, in the asked style.
- ``length``: the asked number of facts (retrieval: both documents; classification: the text; others: every text).
- ``relevant``: the positive says what the query says (retrieval: the query's facts; classification: the label; others: all facts).
- ``hn_ok``: the hard negative does not.
- ``hn_hard``: the hard negative is of the same topic, states the asked attribute, and shares a fact where it has two or more.
- ``nocopy``: query and positive have no surface form in common.
- ``plausible``: everything stated is possible for things of this topic.

``good`` = all eight. ``score`` = their weighted sum, 9.5 at most. Short and long matching (s2s, p2p) have no hard negative: there
``hn_ok`` and ``hn_hard`` hold vacuously.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from speedlit.offline.grammar import Statement, parse
from speedlit.offline.lexicon import KEYS
from speedlit.offline.world import Ask, World, read_prompt

WEIGHTS = {"valid": 1.0, "ontask": 1.0, "length": 0.5, "relevant": 2.0, "hn_ok": 2.0, "hn_hard": 1.0, "nocopy": 1.0, "plausible": 1.0}
STYLES = {"question", "keywords", "request"}


def check(world: World, prompt: str, text: str) -> dict[str, float]:
    """All checks of one raw answer to one rendered prompt."""
    ask = read_prompt(prompt)
    fields = fields_of(ask.kind, text)
    return verdict(world, ask, fields) if fields is not None else _score(dict.fromkeys(WEIGHTS, 0))


def fields_of(kind: str, text: str) -> dict[str, str] | None:
    """The record's fields, or None when the text isn't one JSON object with exactly the kind's keys and string values."""
    try:
        data: Any = json.loads(text.strip(), strict=False)
    except (ValueError, RecursionError):
        return None
    keys = KEYS.get(kind, ())
    if not isinstance(data, dict) or set(data) != set(keys) or not all(isinstance(v, str) for v in data.values()):
        return None
    return {key: data[key] for key in keys}


def verdict(world: World, ask: Ask, fields: Mapping[str, str]) -> dict[str, float]:
    """All checks of a record's fields."""
    said = [parse(text) for text in fields.values()]
    statements = [s for s in said if s is not None]
    if len(statements) < len(said) or not _shapes(ask.kind, statements):
        return _score(dict.fromkeys(WEIGHTS, 0))
    found = {"valid": 1, "ontask": ontask(ask, statements), "length": length(ask, statements), "nocopy": nocopy(statements)}
    found |= {"relevant": relevant(ask.kind, statements), "plausible": plausible(world, statements), "hn_ok": 1, "hn_hard": 1}
    if len(statements) == 3:
        found |= {"hn_ok": negative_is_wrong(ask.kind, statements), "hn_hard": negative_is_hard(world, ask, statements)}
    return _score(found)


def _score(found: Mapping[str, int]) -> dict[str, float]:
    checks = {name: int(found[name]) for name in WEIGHTS}
    return {**checks, "good": int(all(checks.values())), "score": sum(WEIGHTS[name] * value for name, value in checks.items())}


def _shapes(kind: str, said: list[Statement]) -> bool:
    """Whether each text is of the sort that belongs in its field, whatever it says."""
    styles = [s.style for s in said]
    if kind == "retrieval":
        return styles[0] in STYLES and styles[1:] == ["document"] * 2
    if kind == "classification":
        return styles[0] in ("statement", "diary") and styles[1:] == ["label"] * 2
    wanted = {"sts": ("statement", "phrase"), "s2s": ("phrase",), "p2p": ("document",)}[kind]
    return all(style in wanted for style in styles)


def ontask(ask: Ask, said: list[Statement]) -> bool:
    """Topic, asked attribute, attribute to be mentioned, style. What the prompt doesn't say is free."""
    texts = [s for s in said if s.style != "label"]
    full = texts[1:] if ask.kind == "retrieval" else texts
    return (
        all(not ask.topic or s.topic == ask.topic for s in texts)
        and all(not ask.attribute or ask.attribute in s.facts for s in said)
        and all(not ask.mention or ask.mention in s.facts for s in full)
        and (not ask.style or all(s.style == ask.style for s in (said if ask.kind == "sts" else said[:1])))
    )


def length(ask: Ask, said: list[Statement]) -> bool:
    """The asked number of facts; a query states one or all of them."""
    if ask.facts is None:
        return True
    full = said[1:] if ask.kind == "retrieval" else [s for s in said if s.style != "label"]
    return all(len(s.facts) == ask.facts for s in full)


def relevant(kind: str, said: list[Statement]) -> bool:
    """Whether the positive says what the query says."""
    query, positive = said[0].concepts(), said[1].concepts()
    if kind == "retrieval":
        return said[0].topic == said[1].topic and query.items() <= positive.items()
    if kind == "classification":
        return positive.items() <= query.items()
    return said[0].topic == said[1].topic and query == positive


def negative_is_wrong(kind: str, said: list[Statement]) -> bool:
    """Whether the hard negative does not say what the query says."""
    query, positive, negative = said
    return not relevant(kind, [query, negative, positive])


def negative_is_hard(world: World, ask: Ask, said: list[Statement]) -> bool:
    """Whether the hard negative comes close: a possible other label, or the same topic with the asked attribute and a shared fact."""
    query, positive, negative = said
    anchor = positive if ask.kind == "retrieval" else query
    if ask.kind == "classification":
        ((attribute, concept),) = negative.concepts().items()
        return attribute in positive.facts and world.plausible(query.topic, attribute, concept)
    asked = not ask.attribute or ask.attribute in negative.facts
    shared = anchor.concepts().items() & negative.concepts().items()
    return anchor.topic == negative.topic and asked and (len(negative.facts) == 1 or bool(shared))


def nocopy(said: list[Statement]) -> bool:
    """Whether the positive puts the query's facts in other words."""
    return not set(said[0].facts.values()) & set(said[1].facts.values())


def plausible(world: World, said: list[Statement]) -> bool:
    """Whether every stated concept is possible for its topic (a label belongs to the text's topic)."""
    return all(world.plausible(s.topic or said[0].topic, a, c) for s in said for a, c in s.concepts().items())
