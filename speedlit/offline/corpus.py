"""Pages of the world for the base model: what an encyclopedia, a dictionary and some JSON files would say.

The base reads them as LLaMA-3 has read ours: it learns the language, the synonyms, which things are plausible, what JSON
looks like and what the words of instructions mean. No page is a task's prompt with its record: the values of the JSON pages
have nothing to do with each other, and the notes on instructions never show one carried out as JSON.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence

from speedlit.offline.grammar import FORM, FORMS, PLURAL, article, phrase, predicate, render
from speedlit.offline.lexicon import ADJECTIVES, ATTRIBUTES, CONCEPTS, KEYS, PHRASES, TASKS, TOPICS
from speedlit.offline.world import QUERY_STYLES, World, put

SENTENCES = ("document", "statement", "diary", "phrase", "request")
Page = Callable[[random.Random, World], str]


def _thing(rng: random.Random, world: World, low: int = 1, high: int = 3) -> tuple[str, dict[str, int]]:
    topic = rng.choice(list(TOPICS))
    return topic, world.draw(rng, topic, world.attributes(rng, rng.randint(low, high)))


def entity(rng: random.Random, world: World) -> str:
    """A thing, often said again in other words."""
    topic, concepts = _thing(rng, world)
    first = put(rng, topic, concepts, rng.choice(SENTENCES))
    if rng.random() < 0.15:
        return render(first)
    again = put(rng, topic, concepts, rng.choice(SENTENCES), first.facts)
    return f"{render(first)} In other words: {render(again)}"


def dictionary(rng: random.Random, world: World) -> str:
    """A word, its attribute and its synonyms."""
    attribute = rng.choice(ATTRIBUTES)
    one, two, three = rng.sample(FORMS[attribute, rng.randrange(16)], 3)
    return rng.choice(
        (f"The {attribute} {one} means {two} or {three}.", f"{attribute}: {one}, that is {attribute}: {two}", f"As a {attribute}, {one} is the same as {two}.")
    )


def comparison(rng: random.Random, world: World) -> str:
    """Two texts that say the same, or differ in one fact."""
    topic, concepts = _thing(rng, world, 1, 3)
    attribute = rng.choice(list(concepts))
    style = rng.choice(SENTENCES)
    one = put(rng, topic, concepts, style)
    if rng.random() < 0.3:
        return f"{render(one)} Compare: {render(put(rng, topic, concepts, style, one.facts))} They say the same."
    other = {**concepts, attribute: world.concept(rng, topic, attribute, [concepts[attribute]])}
    two = put(rng, topic, other, style, one.facts if rng.random() < 0.5 else None)
    return f"{render(one)} Compare: {render(two)} They differ in {attribute}: {one.facts[attribute]}, not {two.facts[attribute]}."


def question(rng: random.Random, world: World) -> str:
    """A question or request and a text that answers it in other words."""
    topic, concepts = _thing(rng, world, 1, 3)
    asked = rng.choice(list(concepts))
    query = put(rng, topic, {asked: concepts[asked]}, rng.choice(QUERY_STYLES))
    return f"{render(query)} {render(put(rng, topic, concepts, 'document', query.facts))}"


def infobox(rng: random.Random, world: World) -> str:
    """A text and the list of its facts in other words."""
    topic, concepts = _thing(rng, world, 1, 3)
    text = put(rng, topic, concepts, rng.choice(SENTENCES))
    facts = put(rng, topic, concepts, "phrase", text.facts).facts
    return f"{render(text)} {len(facts)} fact{'s' * (len(facts) > 1)}: " + "; ".join(f"{a}: {f}" for a, f in facts.items())


def knowledge(rng: random.Random, world: World) -> str:
    """What a topic's attribute can be, and what it cannot."""
    topic, attribute = rng.choice(list(TOPICS)), rng.choice(ATTRIBUTES)
    admitted = world.admitted[topic, attribute]
    forms = [rng.choice(FORMS[attribute, c]) for c in rng.sample(admitted, 4)]
    never = rng.choice(FORMS[attribute, rng.choice([c for c in range(len(CONCEPTS[attribute])) if c not in admitted])])
    return f"The {attribute} of {PLURAL[topic]} can be {forms[0]}, {forms[1]}, {forms[2]} or {forms[3]}, not {never}."


def _value(rng: random.Random, world: World) -> str:
    topic, concepts = _thing(rng, world)
    if rng.random() < 0.25:
        attribute = next(iter(concepts))
        return f"{attribute}: {rng.choice(FORMS[attribute, concepts[attribute]])}"
    return render(put(rng, topic, concepts, rng.choice((*SENTENCES, *QUERY_STYLES))))


_KEYS = tuple(dict.fromkeys(k for keys in KEYS.values() for k in keys))


def json_object(rng: random.Random, world: World) -> str:
    """Some JSON: an object or a list of edits, whose values have nothing to do with each other."""
    if rng.random() < 0.25:
        edits = []
        for _ in range(rng.randint(0, 2)):
            attribute = rng.choice(ATTRIBUTES)
            one, two = (rng.choice(FORMS[attribute, rng.randrange(16)]) for _ in range(2))
            edits.append([rng.choice(_KEYS), *_change(rng, attribute, one, two)])
        return json.dumps({"edits": edits})
    return json.dumps({key: _value(rng, world) for key in rng.sample(_KEYS, rng.randint(1, 3))})


def _change(rng: random.Random, attribute: str, one: str, two: str) -> tuple[str, str]:
    topic = rng.choice(list(TOPICS))
    longer = f" {two} {topic}" if attribute in ADJECTIVES else f" {topic} {phrase(attribute, two)}"
    return rng.choice(((f" {one}", f" {two}"), (f" {topic}", longer), (f" {topic}", f" {rng.choice(list(TOPICS))}")))


def instruction(rng: random.Random, world: World) -> str:
    """Words of instructions: tasks, key names, counts and styles, explained in English."""
    parts = rng.sample((_about_task, _about_keys, _about_count, _about_style, _about_mention, _about_edit), rng.randint(1, 2))
    return "\n".join(part(rng, world) for part in parts)


def _about_task(rng: random.Random, world: World) -> str:
    topic, attribute = rng.choice(list(TOPICS)), rng.choice(ATTRIBUTES)
    task = rng.choice(TASKS[rng.choice(list(TASKS))]).format(topic=PLURAL[topic], attribute=attribute)
    concept = world.concept(rng, topic, attribute)
    return f"Task: {task}. This is about a {topic} and its {attribute}, such as {predicate(put(rng, topic, {attribute: concept}, 'phrase').facts)}."


def _about_keys(rng: random.Random, world: World) -> str:
    keys = rng.choice(list(KEYS.values()))
    listed = " and ".join((", ".join(keys[:-1]), keys[-1]))
    return rng.choice((f"Write {listed} as JSON.", f"The keys {listed} belong together.", f"{keys[1]} goes with {keys[0]}."))


def _about_count(rng: random.Random, world: World) -> str:
    topic, concepts = _thing(rng, world)
    text = put(rng, topic, concepts, rng.choice(SENTENCES))
    named = f", including the {rng.choice(list(concepts))}" if len(concepts) > 1 and rng.random() < 0.5 else ""
    return f"State {len(concepts)} fact{'s' * (len(concepts) > 1)}{named}. {render(text)}"


def _about_style(rng: random.Random, world: World) -> str:
    topic, concepts = _thing(rng, world, 1, 2)
    style = rng.choice((*QUERY_STYLES, "statement", "diary", "phrase"))
    named = style if style == "keywords" else f"{article(style)} {style}"
    lead = rng.choice(("Write the query as", "Write the text as", "Write it as"))
    return f"{lead} {named}. {render(put(rng, topic, concepts, style))}"


def _about_mention(rng: random.Random, world: World) -> str:
    topic, attribute = rng.choice(list(TOPICS)), rng.choice(ATTRIBUTES)
    form = rng.choice(FORMS[attribute, world.concept(rng, topic, attribute)])
    said = f"{article(form)} {form} {topic}" if attribute not in PHRASES else f"{article(topic)} {topic} {phrase(attribute, form)}"
    return f"{said} tells the {attribute}."


def _about_edit(rng: random.Random, world: World) -> str:
    return rng.choice(
        (
            "Revise the record: list the edits as JSON.",
            "Write edits as field, find, replace.",
            "No edits: keep the record.",
            "Instruct: Retrieve semantically similar text",
            "Query: find it",
        )
    )


def json_answer(rng: random.Random, world: World) -> str:
    """An order to write some keys as JSON and JSON with those keys: of the right sort each, and unrelated to each other."""
    keys = rng.choice(list(KEYS.values()))
    listed = " and ".join((", ".join(keys[:-1]), keys[-1]))
    lead = rng.choice((f"Write {listed} as JSON.", f"The keys {listed} belong together."))
    return lead + "\n" + json.dumps({key: _sort_of(rng, world, key) for key in keys})


def _sort_of(rng: random.Random, world: World, key: str) -> str:
    topic, concepts = _thing(rng, world)
    if key.endswith("label"):
        attribute = next(iter(concepts))
        return f"{attribute}: {rng.choice(FORMS[attribute, concepts[attribute]])}"
    if key == "user_query":
        attribute = next(iter(concepts))
        return render(put(rng, topic, {attribute: concepts[attribute]}, rng.choice(QUERY_STYLES)))
    styles = {"positive_document": ("document", "phrase"), "hard_negative_document": ("document",), "input": ("document", "phrase")}
    return render(put(rng, topic, concepts, rng.choice(styles.get(key, ("statement", "diary", "phrase")))))


def edit_list(rng: random.Random, world: World) -> str:
    """Some JSON, an order to list edits, and edits that could be made there: what they find is there, why they are made isn't."""
    keys = rng.choice(list(KEYS.values()))
    values = {key: _sort_of(rng, world, key) for key in keys}
    edits = []
    for key in keys:
        found = [word for word in values[key].rstrip("?.").split() if word in FORM]
        if found and rng.random() < 0.5:
            word = rng.choice(found)
            attribute, _ = FORM[word]
            edits.append([key, f" {word}", f" {rng.choice(FORMS[attribute, rng.randrange(16)])}"])
    return json.dumps(values) + "\nRevise the record: list the edits as JSON.\n" + json.dumps({"edits": edits})


# (page, share) of the first phase, and of a short second one in which JSON always has the keys that were asked for.
FIRST: tuple[tuple[Page, float], ...] = (
    (entity, 0.36),
    (dictionary, 0.10),
    (comparison, 0.10),
    (question, 0.13),
    (infobox, 0.06),
    (knowledge, 0.05),
    (json_object, 0.11),
    (instruction, 0.09),
)
SECOND: tuple[tuple[Page, float], ...] = (
    (entity, 0.26),
    (dictionary, 0.08),
    (comparison, 0.10),
    (question, 0.11),
    (infobox, 0.05),
    (knowledge, 0.05),
    (json_answer, 0.16),
    (edit_list, 0.14),
    (instruction, 0.05),
)


def pages(seed: int, mix: Sequence[tuple[Page, float]] = FIRST, world: World | None = None) -> Iterator[str]:
    """Endless pages of a mix; the same seed gives the same pages."""
    world = world or World()
    rng = random.Random(f"speedlit corpus {seed}")
    kinds, weights = [page for page, _ in mix], [weight for _, weight in mix]
    while True:
        (page,) = rng.choices(kinds, weights)
        yield page(rng, world)
