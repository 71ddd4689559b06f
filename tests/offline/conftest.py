"""A prompt of every kind for a spread of cells, with the set that the demo uses."""

import pytest

from speedlit.offline.lexicon import TOPICS
from speedlit.offline.world import task_sentences
from speedlit.synthesis.templates import derived_random, load_set


@pytest.fixture(scope="session")
def prompts() -> list[tuple[str, str]]:
    """(kind, rendered prompt): 5 kinds x 24 topics x 6 attributes."""
    mini = load_set("mini")
    return [
        (kind, mini[kind].render(task, TOPICS[topic], derived_random(task, kind))[0][-1]["content"])
        for kind in mini
        for topic in TOPICS
        for task in task_sentences(topic, kind)[:6]
    ]
