"""A teacher of fixed habits behind the test server, and a context for running stages with it."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from speedlit.context import Context
from speedlit.synthesis.client import HTTPBackend
from tests.synthesis.server import Server

NOUNS = [
    "harbour", "violin", "glacier", "market", "engine", "orchard", "lantern", "bridge",
    "falcon", "harvest", "compass", "meadow", "anchor", "saddle", "thunder", "pepper",
]  # fmt: skip
CONFIG = {
    "seed": 7,
    "topics": {"file": None, "depth": 4},
    "prompts": "paper",
    "tasks": {"per_topic": 2, "test": 0.25, "validation": 0.125},
    "counts": {
        "seed": 30, "root": 20, "candidates": 3, "preferences": 20, "revisions": 25, "synthesis": 24, "validation": 0, "test": 8,
        "test_samples": 1, "embedder": None,
    },
    "teacher": {"temperature": 1.0, "max_tokens": 200},
    "sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 100},
    "revision": "edits",
    "revise_fields": None,
    "control": True,
    "filters": {"exact": True, "minhash_threshold": 0.8, "ngram": 13},
    "comparison": {"sources": ["junior", "senior", "refined", "teacher"], "seeds": 1},
    "evaluation": {"tasks": [], "data": None},
}  # fmt: skip
TOPICS = [f"Arts/{noun.title()}/Works" for noun in NOUNS]
STAGES = ("topics", "tasks", "seed", "candidates", "preferences", "revisions", "synthesis", "refinement", "dataset")


def answer(body: dict[str, Any], n: int) -> str:
    """What every role says: a function of the request alone. One sample in eight is no JSON."""
    text = body["messages"][-1]["content"]
    rng = random.Random(f"{text}{body.get('seed')}")
    if "JSON list of strings" in text:
        kind, topic = re.search(r"Kind: (\w+)", text)[1], re.search(r"Topic: (.+)", text)[1]
        return json.dumps([f"{kind} number {i} within {topic}" for i in range(5)])
    candidates = re.findall(r"<candidate (\d+)>\n(.*)\n</candidate", text)
    if candidates:
        best, *_, worst = sorted(candidates, key=lambda pair: -len(pair[1]))
        return json.dumps({"reason": "longest", "best": int(best[0]), "worst": int(worst[0])})
    if "<record>" in text:
        record = json.loads(re.search(r"<record>\n(.*)\n</record>", text)[1])
        name = rng.choice(list(record))
        edits = [[name, record[name].split()[0], "mended"]] if rng.random() < 0.7 else [["nowhere", "a", "b"]] if rng.random() < 0.3 else []
        return json.dumps({"reason": "first word", "edits": edits})
    if rng.random() < 1 / 8:
        return "I'm sorry, I have no idea."
    keys = re.findall(r'^- "(\w+)":', text, re.MULTILINE)
    return json.dumps({key: " ".join(rng.choices(NOUNS, k=rng.randint(4, 12))) for key in keys})


def context(name: str, root: Path, server: Server, shard: tuple[int, int] = (0, 1), **config: Any) -> Context:
    """A stage's context; every role is played by the scripted teacher."""
    stage = root / name
    out = stage if shard == (0, 1) else stage / "work" / f"shard-{shard[0]}-of-{shard[1]}"
    out.mkdir(parents=True, exist_ok=True)
    journal = root / ("journal.sqlite" if shard == (0, 1) else f"journal-{shard[0]}-of-{shard[1]}.sqlite")

    def backend(role: str) -> HTTPBackend:
        return HTTPBackend("m", server.url, journal if role == "teacher" else None, role=role, concurrency=8, backoff=0.01)

    def checker(name: str, payload: Any) -> Any:
        if name == "topics":
            return {"topics": TOPICS}
        if name == "cells":
            return {"cells": [task["topic"] for task in payload["tasks"]]}
        assert name == "evaluation"
        return {"files": {"tasks.json": {"T": {}}, "T/corpus.jsonl": [{"id": "1", "text": " ".join(NOUNS)}]}}

    inputs = {stage: root / stage for stage in STAGES}
    return Context(name, out, inputs, {**CONFIG, **config}, root, backend, checker, shard)


def run_until(last: str, root: Path, server: Server, **config: Any) -> dict[str, Context]:
    """Run the stages up to ``last``, those with models played by the scripted teacher."""
    from importlib import import_module

    done = {}
    for name in STAGES[: STAGES.index(last) + 1]:
        done[name] = context(name, root, server, **config)
        import_module(f"speedlit.synthesis.stages.{name}").run(done[name])
    return done
