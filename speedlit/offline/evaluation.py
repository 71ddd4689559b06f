"""Evaluation sets rendered from held-out cells of the world, laid out as local mteb tasks (``datasets.load_dataset(<folder>)``).

Retrieval: of each (topic, attribute, concept) one word belongs to the queries and the two others to the documents, so a query never
shares a word of its fact with a document that answers it: only synonym matches count. Classification: the test texts use a word
that no training text of the label uses. STS: two texts, the score is 5 x the share of common facts; no words are shared.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from speedlit.offline.grammar import FORMS, Statement, render
from speedlit.offline.lexicon import ATTRIBUTES, NAMES, TOPICS
from speedlit.offline.world import QUERY_STYLES, TEXT_STYLES, World

SIZES = {"documents": 800, "queries": 300, "sts": 300, "classification": 300, "train": 400, "clustering": 400}
Fact = tuple[str, str, int]  # topic, attribute, concept
RETRIEVAL_README = """---
configs:
- config_name: default
  data_files:
  - split: test
    path: qrels/test.jsonl
- config_name: corpus
  data_files:
  - split: corpus
    path: corpus.jsonl
- config_name: queries
  data_files:
  - split: queries
    path: queries.jsonl
---
Queries and documents of the embedded world; rendered by speedlit.offline.evaluation.
"""


def evaluation(world: World, cells: Iterable[str], seed: int = 0, sizes: Mapping[str, int] | None = None) -> dict[str, Any]:
    """All files of an evaluation folder.

    Args:
        world: whose facts are asked.
        cells: held-out ``topic/attribute`` groups; groups that the world doesn't know are passed over, none at all means every cell.
        seed: of the draw.
        sizes: counts that differ from ``SIZES``.

    Returns:
        Relative path -> list of rows (JSON lines), a value (``tasks.json``) or text (``README.md``).
    """
    held = [tuple(c.split("/")) for c in sorted(set(cells)) if c in world.cells] or [tuple(c.split("/")) for c in world.cells]
    maker = Maker(world, [(t, a) for t, a in held], random.Random(f"speedlit evaluation {world.seed} {seed}"), {**SIZES, **(sizes or {})})
    tasks = [
        {"folder": "WorldRetrieval", "type": "Retrieval", "prompt": {"query": "find things by what is asked"}},
        {"folder": "WorldSTS", "type": "STS", "prompt": "Retrieve semantically similar text"},
        {"folder": "WorldClassification", "type": "Classification", "prompt": f"tell the {maker.attribute} of things"},
        {"folder": "WorldClustering", "type": "Clustering", "prompt": f"sort things by their {maker.attribute}"},
    ]
    return {"tasks.json": tasks, **maker.retrieval(), **maker.sts(), **maker.classification(), **maker.clustering()}


class Maker:
    """Draws evaluation rows from held-out cells.

    Args:
        world: whose facts are used.
        cells: held-out (topic, attribute) pairs.
        rng: source of chance; the sets are drawn in a fixed order.
        sizes: rows per set.
    """

    def __init__(self, world: World, cells: Sequence[tuple[str, str]], rng: random.Random, sizes: Mapping[str, int]) -> None:
        self.world, self.cells, self.rng, self.sizes = world, cells, rng, sizes
        counts = Counter(a for _, a in cells)
        self.attribute = max(ATTRIBUTES, key=lambda a: counts[a])  # labels are values of the attribute with most held-out cells
        self._asked: dict[tuple[str, int], str] = {key: rng.choice(forms) for key, forms in FORMS.items()}

    def retrieval(self) -> dict[str, Any]:
        """Corpus, queries and judgements, and the topic of each query, which no model sees (``speedlit study`` groups the queries by it)."""
        pool = sorted({(t, a, c) for t, a in self.cells for c in self.world.admitted[t, a]})
        asked = [(fact, style) for fact in pool for style in QUERY_STYLES]
        asked = self.rng.sample(asked, min(self.sizes["queries"], len(asked)))
        facts = sorted({fact for fact, _ in asked})
        documents = [self._document(fact) for fact in facts]
        while len(documents) < self.sizes["documents"]:
            documents.append(self._document(self.rng.choice(facts) if self.rng.random() < 0.5 else self._any_fact()))
        texts = list(dict.fromkeys(render(d) for d in documents))
        told = {render(d): d for d in documents}
        corpus = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)]
        queries, judged, topics = [], [], []
        for i, ((topic, attribute, concept), style) in enumerate(asked):
            text = render(Statement(topic, {attribute: self._asked[attribute, concept]}, style))
            queries.append({"_id": f"q{i}", "text": text})
            topics.append({"query-id": f"q{i}", "topic": TOPICS[topic], "group": f"{topic}/{attribute}"})
            hits = [row["_id"] for row in corpus if told[row["text"]].topic == topic and told[row["text"]].concept(attribute) == concept]
            judged += [{"query-id": f"q{i}", "corpus-id": hit, "score": 1} for hit in hits]
        folder = "WorldRetrieval/"
        files = {"README.md": RETRIEVAL_README, "corpus.jsonl": corpus, "queries.jsonl": queries, "qrels/test.jsonl": judged, "topics.jsonl": topics}
        return {folder + name: rows for name, rows in files.items()}

    def _any_fact(self) -> Fact:
        topic, attribute = self.rng.choice(list(TOPICS)), self.rng.choice(ATTRIBUTES)
        return topic, attribute, self.world.concept(self.rng, topic, attribute)

    def _document(self, fact: Fact) -> Statement:
        """A document with this fact and up to two others, in words that no query uses."""
        topic, attribute, concept = fact
        others = self.rng.sample([a for a in ATTRIBUTES if a != attribute], self.rng.randint(0, 2))
        concepts = {attribute: concept, **self.world.draw(self.rng, topic, others)}
        words = {a: self.rng.choice([f for f in FORMS[a, c] if f != self._asked[a, c]]) for a, c in concepts.items()}
        return Statement(topic, words, "document", self.rng.choice(NAMES))

    def sts(self) -> dict[str, Any]:
        """Pairs whose score, 0 to 5, is the share of facts (topic included) that the two have in common."""
        rows = []
        for _ in range(self.sizes["sts"]):
            topic, attribute = self.rng.choice(self.cells)
            concepts = self.world.draw(self.rng, topic, self.world.attributes(self.rng, self.rng.randint(1, 3), [attribute]))
            change = self.rng.sample(list(concepts), self.rng.randint(0, len(concepts)))
            other = topic if self.rng.random() < 0.8 else self.rng.choice(list(TOPICS))
            changed = {a: self.world.concept(self.rng, other, a, [c] if a in change else ()) if a in change else c for a, c in concepts.items()}
            said = dict.fromkeys([*concepts.items(), *changed.items()])  # no set: its order is another in each process
            words = {key: self.rng.sample(FORMS[key], 2) for key in said}
            style = self.rng.choice(TEXT_STYLES)
            one = render(Statement(topic, {a: words[a, c][0] for a, c in concepts.items()}, style))
            two = render(Statement(other, {a: words[a, c][1] for a, c in changed.items()}, style))
            common = (topic == other) + len(concepts.items() & changed.items())
            rows.append({"sentence1": one, "sentence2": two, "score": round(5 * common / (1 + len(concepts)), 2)})
        return {"WorldSTS/test.jsonl": rows}

    def classification(self) -> dict[str, Any]:
        """Texts labelled with one attribute's concept; the test's word for it is in no training text."""
        train = [self._labelled(seen=True) for _ in range(self.sizes["train"])]
        known = {row["label"] for row in train}
        test = [row for row in (self._labelled(seen=False) for _ in range(self.sizes["classification"])) if row["label"] in known]
        return {"WorldClassification/train.jsonl": train, "WorldClassification/test.jsonl": test}

    def _labelled(self, seen: bool) -> dict[str, str]:
        attribute = self.attribute
        topic = self.rng.choice([t for t, a in self.cells if a == attribute])
        concept = self.rng.choice(self.world.admitted[topic, attribute])
        others = self.world.draw(self.rng, topic, self.rng.sample([a for a in ATTRIBUTES if a != attribute], self.rng.randint(0, 1)))
        words = [f for f in FORMS[attribute, concept] if (f != self._asked[attribute, concept]) == seen]
        facts = {attribute: self.rng.choice(words), **{a: self.rng.choice(FORMS[a, c]) for a, c in others.items()}}
        return {"text": render(Statement(topic, facts, self.rng.choice(TEXT_STYLES))), "label": FORMS[attribute, concept][0]}

    def clustering(self) -> dict[str, Any]:
        """Short texts that belong together by one attribute's concept."""
        rows = [self._labelled(seen=self.rng.random() < 0.67) for _ in range(self.sizes["clustering"])]
        return {"WorldClustering/test.jsonl": [{"sentences": row["text"], "labels": row["label"]} for row in rows]}
