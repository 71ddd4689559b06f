"""How the teacher mends a record with as few words as it can, and how it spoils one where noise is asked for."""

from __future__ import annotations

import difflib
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from speedlit.offline.grammar import FORM, FORMS, Statement, render
from speedlit.offline.lexicon import ATTRIBUTES, CONCEPTS, KEYS, NAMES, TOPICS
from speedlit.offline.world import Ask, World

_PIECES = re.compile(r" ?\w+|[^\w]")


# ---------------------------------------------------------------------------------------------------------- wanted texts
def mend(world: World, rng: random.Random, ask: Ask, said: Sequence[Statement | None]) -> list[str]:
    """The texts that a record's texts should become. ``ask`` says everything; what fits it is kept, word by word.

    Args:
        said: what each text says, None where it isn't in the grammar.
    """
    if ask.kind == "retrieval":
        statements = _retrieval(world, rng, ask, said)
    elif ask.kind == "classification":
        statements = _classification(world, rng, ask, said)
    else:
        statements = _same(world, rng, ask, said)
    return [render(s) for s in statements]


def _retrieval(world: World, rng: random.Random, ask: Ask, said: Sequence[Statement | None]) -> list[Statement]:
    query, positive, negative = said
    old = [s.concept(ask.attribute) if s else None for s in (query, positive)]
    concept = next((c for c in old if c is not None and world.plausible(ask.topic, ask.attribute, c)), None)
    if concept is None:
        concept = world.concept(rng, ask.topic, ask.attribute)
    form = _form(rng, query, ask.attribute, concept)
    asked = Statement(ask.topic, {ask.attribute: form}, ask.style)
    good = _full(world, rng, ask, positive, "document", {ask.attribute: concept}, asked.facts)
    return [asked, good, _negative(world, rng, ask, negative, "document", good, {})]


def _classification(world: World, rng: random.Random, ask: Ask, said: Sequence[Statement | None]) -> list[Statement]:
    text, label, misleading = said
    full = _full(world, rng, ask, text, ask.style, {}, {})
    concept = full.concepts()[ask.attribute]
    right = Statement("", {ask.attribute: _form(rng, label, ask.attribute, concept, full.facts)}, "label")
    other = misleading.concept(ask.attribute) if misleading else None
    if other is None or other == concept or not world.plausible(ask.topic, ask.attribute, other):
        other = world.concept(rng, ask.topic, ask.attribute, [concept])
    return [full, right, Statement("", {ask.attribute: _form(rng, misleading, ask.attribute, other)}, "label")]


def _same(world: World, rng: random.Random, ask: Ask, said: Sequence[Statement | None]) -> list[Statement]:
    first = _full(world, rng, ask, said[0], ask.style, {}, {})
    again = {a: _form(rng, said[1], a, c, first.facts) for a, c in first.concepts().items()}
    out = [first, Statement(ask.topic, again, ask.style, _name(rng, said[1], ask.style))]
    return [*out, _negative(world, rng, ask, said[2], ask.style, first, {})] if len(said) == 3 else out


def _full(world: World, rng: random.Random, ask: Ask, old: Statement | None, style: str, fixed: Mapping[str, int], avoid: Mapping[str, str]) -> Statement:
    """A statement of ``ask.facts`` facts: the old ones where they are possible, those in ``fixed`` as given, none in ``avoid``'s words."""
    concepts = {a: c for a, c in (old.concepts() if old else {}).items()}
    needed = [a for a in (ask.attribute, ask.mention) if a]
    kept = [a for a in concepts if a not in needed][: max((ask.facts or 1) - len(set(needed)), 0)]
    chosen = world.attributes(rng, ask.facts or 1, [*needed, *kept])
    facts = {}
    for a in chosen:
        c = fixed.get(a, concepts.get(a))
        if c is None or not world.plausible(ask.topic, a, c):
            c = world.concept(rng, ask.topic, a)
        facts[a] = _form(rng, old, a, c, avoid)
    return Statement(ask.topic, facts, style, _name(rng, old, style))


def _negative(world: World, rng: random.Random, ask: Ask, old: Statement | None, style: str, positive: Statement, avoid: Mapping[str, str]) -> Statement:
    """A hard negative near ``positive``: another value of the asked attribute, another fact in common where there are two or more."""
    near = positive.concepts()
    draft = _full(world, rng, ask, old if old else replace(positive, name=""), style, {}, avoid)
    facts, said = dict(draft.facts), draft.concepts()
    if (style == "document" and said[ask.attribute] == near[ask.attribute]) or said == near:
        c = world.concept(rng, ask.topic, ask.attribute, [near[ask.attribute]])
        facts[ask.attribute], said[ask.attribute] = _form(rng, None, ask.attribute, c), c
    if len(facts) > 1 and not said.items() & near.items():
        spare = [a for a in near if a != ask.attribute and a in said] or [ask.mention or next(a for a in near if a != ask.attribute)]
        if spare[0] not in said:
            del facts[next(a for a in said if a not in (ask.attribute, ask.mention))]
        facts[spare[0]] = _form(rng, None, spare[0], near[spare[0]])
    return replace(draft, facts=facts)


def _form(rng: random.Random, old: Statement | None, attribute: str, concept: int, avoid: Mapping[str, str] | None = None) -> str:
    """The old word where it says the concept and isn't to be avoided, else a new one."""
    word = old.facts.get(attribute) if old else None
    shunned = (avoid or {}).get(attribute)
    if word and FORM[word][1] == concept and word != shunned:
        return word
    return rng.choice([f for f in FORMS[attribute, concept] if f != shunned])


def _name(rng: random.Random, old: Statement | None, style: str) -> str:
    return (old.name if old and old.name else rng.choice(NAMES)) if style == "document" else ""


# ----------------------------------------------------------------------------------------------------------------- edits
def differences(text: str, goal: str) -> list[list[str]]:
    """``[find, replace]`` pairs that turn ``text`` into ``goal`` when each replaces its first occurrence in turn."""
    if text == goal:
        return []
    old, new = _PIECES.findall(text), _PIECES.findall(goal)
    edits, now = [], text
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        i1, j1, i2, j2 = _anchor(tag, i1, i2, j1, j2, old)
        pair = ["".join(old[i1:i2]), "".join(new[j1:j2])]
        edits.append(pair)
        now = now.replace(pair[0], pair[1], 1) if pair[0] else now
    return edits if now == goal else [[text, goal]]


def _anchor(tag: str, i1: int, i2: int, j1: int, j2: int, old: Sequence[str]) -> tuple[int, int, int, int]:
    """Something to find where words are only put in: the word that follows, else the one before."""
    if tag != "insert":
        return i1, j1, i2, j2
    return (i1, j1, i2 + 1, j2 + 1) if i2 < len(old) and old[i2].strip().isalpha() else (i1 - 1, j1 - 1, i2, j2)


def needless(rng: random.Random, fields: Mapping[str, str]) -> list[list[str]]:
    """An edit that a mistaken critic makes: another word of the same attribute, whatever it means."""
    places = [(key, word) for key, text in fields.items() for word in re.findall(r" \w+", text) if word[1:] in FORM]
    if not places:
        return []
    key, word = rng.choice(places)
    attribute = FORM[word[1:]][0]
    return [[key, word, " " + rng.choice([f for n in range(len(CONCEPTS[attribute])) for f in FORMS[attribute, n] if f != word[1:]])]]


# --------------------------------------------------------------------------------------------------------------- defects
Defect = Callable[[World, random.Random, Ask, list[Statement]], str]


def _dump(ask: Ask, said: Sequence[Statement]) -> str:
    return json.dumps(dict(zip(KEYS[ask.kind], map(render, said), strict=True)))


def _set(statement: Statement, attribute: str, form: str) -> Statement:
    return replace(statement, facts={**statement.facts, attribute: form})


def broken(world: World, rng: random.Random, ask: Ask, said: list[Statement]) -> str:
    """Not JSON: the last quotation mark is lost."""
    return _dump(ask, said)[:-2] + "}"


def off_task(world: World, rng: random.Random, ask: Ask, said: list[Statement]) -> str:
    """About another topic throughout, of which everything is possible too where that can be found."""
    others = sorted(set(TOPICS) - {ask.topic}, key=lambda t: (-sum(world.plausible(t, a, c) for s in said for a, c in s.concepts().items()), t))
    return _dump(ask, [replace(s, topic=others[0] if s.topic else "") for s in said])


def wrong_length(world: World, rng: random.Random, ask: Ask, said: list[Statement]) -> str:
    """A fact too many (the same in every full text, so that nothing else goes wrong)."""
    full = [i for i, s in enumerate(said) if s.style != "label" and not (ask.kind == "retrieval" and i == 0)]
    taken = {a for i in full for a in said[i].facts}
    attribute = rng.choice([a for a in ATTRIBUTES if a not in taken])
    forms = list(FORMS[attribute, world.concept(rng, ask.topic, attribute)])
    rng.shuffle(forms)
    return _dump(ask, [_set(s, attribute, forms[min(i, 2)]) if i in full else s for i, s in enumerate(said)])


def irrelevant(world: World, rng: random.Random, ask: Ask, said: list[Statement]) -> str:
    """The positive says another thing than the query; the negative does not say it either."""
    concept = said[0].concepts()[ask.attribute]
    other = world.concept(rng, ask.topic, ask.attribute, [concept])
    return _dump(ask, [said[0], _set(said[1], ask.attribute, rng.choice(FORMS[ask.attribute, other])), *said[2:]])


def false_negative(world: World, rng: random.Random, ask: Ask, said: list[Statement]) -> str:
    """The hard negative says what the query says (matching kinds have none: the positive is irrelevant there)."""
    if len(said) == 2:
        return irrelevant(world, rng, ask, said)
    concepts = said[0].concepts() if ask.kind != "classification" else {ask.attribute: said[0].concepts()[ask.attribute]}
    kept = dict(said[2].facts) if ask.kind == "retrieval" else {}
    facts = {**kept, **{a: rng.choice(FORMS[a, c]) for a, c in concepts.items()}}
    return _dump(ask, [*said[:2], replace(said[2], facts=facts)])


def easy_negative(world: World, rng: random.Random, ask: Ask, said: list[Statement]) -> str:
    """The hard negative is about another topic, or a label of another attribute."""
    if len(said) == 2:
        return irrelevant(world, rng, ask, said)
    if ask.kind == "classification":
        attribute = rng.choice([a for a in ATTRIBUTES if a != ask.attribute])
        return _dump(ask, [*said[:2], Statement("", {attribute: FORMS[attribute, world.concept(rng, ask.topic, attribute)][0]}, "label")])
    return _dump(ask, [*said[:2], replace(said[2], topic=rng.choice(sorted(set(TOPICS) - {ask.topic})))])


def copied(world: World, rng: random.Random, ask: Ask, said: list[Statement]) -> str:
    """The positive repeats a word of the query."""
    return _dump(ask, [said[0], _set(said[1], ask.attribute, said[0].facts[ask.attribute]), *said[2:]])


def implausible(world: World, rng: random.Random, ask: Ask, said: list[Statement]) -> str:
    """The asked fact is one that things of this topic never have, in query and positive alike."""
    attribute = ask.attribute
    concept = rng.choice([n for n in range(len(CONCEPTS[attribute])) if not world.plausible(ask.topic, attribute, n)])
    forms = rng.sample(FORMS[attribute, concept], 2)
    return _dump(ask, [_set(said[0], attribute, forms[0]), _set(said[1], attribute, forms[1]), *said[2:]])


DEFECTS: dict[str, Defect] = {
    "valid": broken, "ontask": off_task, "length": wrong_length, "relevant": irrelevant, "hn_ok": false_negative,
    "hn_hard": easy_negative, "nocopy": copied, "plausible": implausible,
}  # fmt: skip
