"""The world: readable sentences that are read back exactly, and facts that depend on the seed alone."""

import itertools
import random

import pytest

from speedlit.offline.corpus import pages
from speedlit.offline.grammar import FORM, parse, render
from speedlit.offline.lexicon import ATTRIBUTES, CONCEPTS, NAMES, TOPICS
from speedlit.offline.world import ADMITTED, QUERY_STYLES, TEXT_STYLES, UNITS, World, cell, put, read_prompt, subject, topic_of


def test_words_are_unique_and_shapes_are_as_promised():
    words = [form for rows in CONCEPTS.values() for row in rows for form in row.split()]
    assert len(TOPICS) == 24 and len(ATTRIBUTES) == 6 and all(len(rows) == 16 for rows in CONCEPTS.values())
    assert len(words) == 6 * 16 * 3 == len(set(words)) == len(FORM)
    assert not set(words) & (set(TOPICS) | set(ATTRIBUTES) | {n.lower() for n in NAMES})
    assert sum(path.count("/") >= 4 for path in TOPICS.values()) >= 5, "some paths must be deeper than four levels"


def test_same_seed_same_world_and_another_seed_another():
    assert World(0).admitted == World(0).admitted != World(1).admitted
    assert all(len(set(concepts)) == ADMITTED for concepts in World(0).admitted.values()) and len(World(0).cells) == 144


@pytest.mark.parametrize("style", [*QUERY_STYLES, *TEXT_STYLES, *UNITS, "document"])
def test_every_sentence_is_read_back(style):
    world, rng = World(), random.Random(style)
    for _ in range(200):
        topic = rng.choice(list(TOPICS))
        said = put(rng, topic, world.draw(rng, topic, world.attributes(rng, rng.randint(1, 3))), style)
        assert parse(render(said)) == said, render(said)


@pytest.mark.parametrize(
    "text",
    [
        "", "boat", "crimson", "Which boat is?", "Which boat is purple?", "a crimson scarlet boat", "There is a boat near the doctor.", "a boat crimson",
        "Vela is a crimson boat.", "There is a crimson boat", "colour: doctor", "I want a crimson boat near the.", "Which crimson is boat?",
    ],
)  # fmt: skip
def test_what_is_not_a_sentence_is_not_read(text):
    assert parse(text) is None


def test_articles_may_be_mixed_up_by_a_small_model():
    assert parse("There is a azure boat owned by a author.") == parse("There is an azure boat owned by an author.")


def test_tasks_and_paths_are_recognised():
    assert subject("sort boats by their colour") == ("boat", "colour")
    assert topic_of("Recreation/Outdoors/Vessels/Boats") == topic_of("Recreation/Outdoors/Water/Sailing/Vessels/Boats") == "boat"
    assert cell(TOPICS["boat"], "retrieval", "search for boats with a given owner") == "boat/owner"
    assert cell("Top/Arts/Animation", "retrieval", "find films of a decade") == "Top/Arts/Animation"


def test_a_prompt_is_read():
    text = "Task: find boats by their owner.\nState 2 facts, including the colour.\nWrite the query as a question.\n"
    ask = read_prompt(text + "Write user_query, positive_document and hard_negative_document as JSON.")
    assert (ask.kind, ask.topic, ask.attribute, ask.facts, ask.mention, ask.style) == ("retrieval", "boat", "owner", 2, "colour", "question")


def test_pages_are_reproducible_and_show_no_task_with_its_record():
    first, again = (list(itertools.islice(pages(3), 3000)) for _ in range(2))
    assert first == again and first[:50] != list(itertools.islice(pages(4), 50))
    assert not any("Task:" in page and "{" in page for page in first)
    assert len(set(first)) > 2500


def test_evaluation_sets_are_the_same_in_every_process() -> None:
    """Decontamination reads them: another set would leave other records out."""
    import os
    import subprocess
    import sys

    code = (
        "import json, hashlib; from speedlit.offline.evaluation import evaluation; from speedlit.offline.world import World; "
        "print(hashlib.sha256(json.dumps(evaluation(World(), ['boat/colour', 'cup/owner'])).encode()).hexdigest())"
    )
    made = set()
    for seed in "0123":
        run = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True)
        made.add(run.stdout)
    assert len(made) == 1
