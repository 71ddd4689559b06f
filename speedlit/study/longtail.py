"""Scores by how frequent a topic is in the training data: every query of known topic is scored, topics fall into head, middle and tail.

The queries are those of evaluation sets whose folder has a ``topics.jsonl`` (``{"query-id", "topic", "group"}``), as the sets of the embedded
teacher have. Where no set has one, they are the run's own records of held-out prompts: written by the senior and the revisor, so not free of
error, but of tasks that no training record was asked for. A query finds its positive document among all documents; its score is nDCG@10.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speedlit.errors import UsageError
from speedlit.evaluation.bootstrap import Interval, cluster_bootstrap, paired_bootstrap
from speedlit.files import read_jsonl, write_json
from speedlit.records import Prompt, Record, Topic, Triplet, read_rows
from speedlit.synthesis.lines import with_prompts
from speedlit.synthesis.stages.topics import truncate

GROUPS = ("head", "middle", "tail")
DEPTH = 10  # of nDCG
LABELS = ("classification",)  # kinds whose positive is a label, not a document

Scores = Mapping[str, float]


def write_probe(path: Path, data: Path | None, tasks: Sequence[Any], held_out: Iterable[tuple[Record, Prompt]], depth: int) -> None:
    """Write the queries and documents that are scored by topic.

    Args:
        path: JSON file to write.
        data: the folder of the evaluation sets.
        tasks: its tasks, loaded.
        held_out: records of held-out prompts, used where no set names topics.
        depth: topics are cut to this depth, as the run's are.
    """
    from speedlit.evaluation.tasks import read_rows as read_sets

    sets = read_sets(data) if data is not None else {}
    named = {name: data / row["folder"] / "topics.jsonl" for name, row in sets.items()} if data is not None else {}
    found = [from_set(task, named[task.metadata.name], depth) for task in tasks if named.get(task.metadata.name, Path()).is_file()]
    if not found:
        own = from_records(held_out)
        found = [own] if own["queries"] else []
    write_json(path, {"sets": found})


def from_set(task: Any, topics: Path, depth: int) -> dict[str, Any]:
    """The queries of a retrieval set whose topics are known.

    Raises:
        UsageError: the file of topics lacks a column, or the set is none for retrieval.
    """
    dataset = getattr(task, "dataset", None) or {}
    parts = list(dataset.get("default", {}).values()) if "default" in dataset else []
    if not parts or "relevant_docs" not in parts[0]:
        raise UsageError(f"{topics}: topics are read for retrieval sets only; remove the file, or give the queries' set")
    of = {}
    for row in read_jsonl(topics):
        if not {"query-id", "topic"} <= set(row):
            raise UsageError(f"{topics}: a row needs query-id and topic (and may have group); it has {', '.join(row)}")
        of[str(row["query-id"])] = (truncate(row["topic"], depth), str(row.get("group", row["topic"])))
    prompt = task.metadata.prompt
    part, name = parts[0], task.metadata.name
    corpus, queries = part["corpus"], part["queries"]
    return {
        "name": name,
        "instruction": prompt.get("query") if isinstance(prompt, dict) else prompt,
        "documents": {str(i): f"{title} {text}".strip() for i, title, text in zip(corpus["id"], corpus["title"], corpus["text"], strict=True)},
        "queries": [
            {"id": f"{name}/{i}", "text": text, "topic": of[i][0], "group": of[i][1], "relevant": part["relevant_docs"][i]}
            for i, text in zip(queries["id"], queries["text"], strict=True)
            if i in of
        ],
    }


def from_records(held_out: Iterable[tuple[Record, Prompt]]) -> dict[str, Any]:
    """The run's own held-out records as a retrieval set; equal documents are one document."""
    documents: dict[str, str] = {}
    queries = []
    for record, prompt in held_out:
        if record.kind in LABELS:
            continue
        place = documents.setdefault(record.positive, str(len(documents)))
        queries.append({"id": record.id, "text": record.query, "topic": prompt.topic, "group": prompt.group, "relevant": {place: 1}})
    return {"name": "held-out records", "instruction": None, "documents": {place: text for text, place in documents.items()}, "queries": queries}


def score_queries(encoder: Any, probe: Mapping[str, Any]) -> dict[str, float]:
    """nDCG@10 of every query of the probe, by its id."""
    out: dict[str, float] = {}
    for part in probe["sets"]:
        names = list(part["documents"])
        documents = encoder.vectors(list(part["documents"].values()))
        queries = encoder.vectors([q["text"] for q in part["queries"]], part["instruction"])
        for query, similarity in zip(part["queries"], queries @ documents.T, strict=True):
            best = np.argsort(-similarity, kind="stable")[:DEPTH]
            out[query["id"]] = ndcg([query["relevant"].get(names[i], 0) for i in best], list(query["relevant"].values()))
    return out


def ndcg(found: Sequence[float], relevant: Sequence[float]) -> float:
    """Normalised discounted cumulative gain of a ranking, with linear gains as trec_eval has them."""

    def gain(values: Sequence[float]) -> float:
        return float(sum(value / np.log2(place + 2) for place, value in enumerate(values[:DEPTH])))

    best = gain(sorted(relevant, reverse=True))
    return gain(found) / best if best else 0.0


def held_out(tasks: Path, refinement: Path) -> Iterator[tuple[Record, Prompt]]:
    """Yield the refined records of held-out prompts, with their prompts."""
    path = refinement / "records.jsonl"
    prompts = {prompt.id: prompt for prompt in read_rows(tasks / "prompts.jsonl", Prompt) if prompt.use == "test"}
    mine = (record for record in read_rows(path, Record) if record.prompt_id in prompts)
    yield from with_prompts(mine, prompts.values(), str(path))


def frequencies(triplets: Path, topics: Path) -> Counter[str]:
    """How many training triplets each topic path has."""
    paths = {topic.id: topic.path for topic in read_rows(topics / "topics.jsonl", Topic)}
    count = Counter(paths.get(t.lineage.get("topic", ""), "") for t in read_rows(triplets, Triplet))
    return Counter({path: count[path] for path in paths.values()})


def terciles(frequency: Mapping[str, int], topics: Iterable[str]) -> dict[str, str]:
    """Each topic's group: a third of the topics each, the most frequent ones are the head. Equal frequencies go by name."""
    order = sorted(set(topics), key=lambda topic: (-frequency.get(topic, 0), topic))
    return {topic: GROUPS[3 * place // len(order)] for place, topic in enumerate(order)}


class Tail:
    """Groups the scores of queries.

    Args:
        probe: what ``write_probe`` wrote.
        frequency: training triplets per topic.
    """

    def __init__(self, probe: Mapping[str, Any], frequency: Mapping[str, int]) -> None:
        self.queries = [query for part in probe["sets"] for query in part["queries"]]
        self.names = [part["name"] for part in probe["sets"]]
        group = terciles(frequency, (query["topic"] for query in self.queries)) if self.queries else {}
        self.groups = {name: [q for q in self.queries if group[q["topic"]] == name] for name in GROUPS}
        self.frequency = frequency

    def table(self, scores: Sequence[Scores], reference: Sequence[Scores] | None = None) -> dict[str, Any]:
        """Per group its mean over queries and seeds x 100, with the 95 % bootstrap over cells of the queries' facts; and against a reference, paired.

        Args:
            scores: of each seed, by query.
            reference: likewise of what is compared with.
        """
        out = {}
        for name, queries in self.groups.items():
            if not queries:
                continue
            clusters = [query["group"] for query in queries]
            mean = [mean_of(scores, query["id"]) for query in queries]
            counts = [self.frequency.get(topic, 0) for topic in sorted({query["topic"] for query in queries})]
            about = {"topics": len(counts), "frequency": [min(counts), max(counts)], "queries": len(queries)}
            out[name] = {**about, **hundred(cluster_bootstrap(mean, clusters))}
            if reference is not None:
                before = [mean_of(reference, query["id"]) for query in queries]
                out[name]["over"] = hundred(paired_bootstrap(mean, before, clusters))
        return out


def mean_of(scores: Sequence[Scores], query: str) -> float:
    """The mean over seeds of one query's score."""
    return float(np.mean([seed[query] for seed in scores]))


def hundred(interval: Interval) -> dict[str, Any]:
    """An interval of fractions in points of 100."""
    return Interval(100 * interval.mean, 100 * interval.low, 100 * interval.high, interval.n, interval.clusters).to_json()
