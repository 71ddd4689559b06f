"""A teacher that is no server. It imports no torch, and neither does what calls it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from typing import Any

from speedlit.synthesis.plugged import Refused

PLACES = ("harbour", "mill", "orchard", "library", "glacier", "station", "market", "forge", "observatory", "theatre")
THINGS = ("ladder", "violin", "compass", "lantern", "kettle", "saddle", "telescope", "anchor", "basket", "bridge")


class Storyteller:
    """Writes dialogues, and thinks of tasks for them; answers depend on the request alone.

    Args:
        refuses: share of the requests that it refuses, as a content filter would.
    """

    def __init__(self, refuses: float = 0.0) -> None:
        self.refuses = refuses

    def answer(self, body: Mapping[str, Any]) -> str:
        """The text for one request."""
        text = body["messages"][-1]["content"]
        draw = random.Random(f"{text}{body['seed']}")
        if "JSON list of strings" in text:
            topic = text.split("Topic: ")[1].splitlines()[0]
            return json.dumps([f"A visitor of the {place} asks about {topic}." for place in draw.sample(PLACES, 5)])
        if draw.random() < self.refuses:
            raise Refused("content_filter")
        keys = re.findall(r'^- "(\w+)":', text, re.MULTILINE)
        return json.dumps({key: " ".join(draw.choices(PLACES + THINGS, k=8)) for key in keys})
