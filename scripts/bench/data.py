"""What both sides of a row read: prompts and records in the shape of the demo's."""

from __future__ import annotations

import json
import random


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Prompt and completion pairs of uneven length."""
    rng = random.Random(seed)
    words = ["a", "crimson", "wooden", "boat", "near", "the", "woods", "owned", "by", "writer", "for", "travel", "that", "is", "damp", "old"]
    out = []
    for i in range(count):
        say = lambda n: " ".join(rng.choice(words) for _ in range(n))  # noqa: E731
        prompt = f"Task: find boats by their colour.\nState {say(rng.randint(3, 20))}.\nWrite user_query and positive_document as JSON."
        record = {"user_query": say(rng.randint(2, 8)), "positive_document": say(rng.randint(4, 24))}
        out.append({"id": str(i), "prompt": prompt, "completion": json.dumps(record)})
    return out
