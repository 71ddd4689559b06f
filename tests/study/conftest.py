"""A finished run that is small enough to study in a moment: a hand-made data set, evaluation sets with topics, and a tiny base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from speedlit.files import write_json, write_jsonl
from speedlit.pipeline.config import RunConfig
from speedlit.pipeline.configure import parse
from speedlit.pipeline.loop import IDENTITY, stages
from speedlit.records import Topic, Triplet, write_rows
from tests.helpers import sentence, tiny_llama

torch.set_num_threads(1)
TOPICS = [f"Arts/T{i}" for i in range(6)]
FREQUENCY = [20, 12, 8, 4, 3, 1]  # triplets of each topic
LEDGER = {"calls": 0, "cached": 0, "generated": 0, "tokens_in": 0, "tokens_out": 0, "accepted": 48, "rejected": {}, "notes": {}}
SEED = {**LEDGER, "calls": 96, "tokens_in": 9600, "tokens_out": 4800}


def triplet(number: int, topic: str, source: str) -> Triplet:
    words = f"{sentence(number, 4)} {number}"
    lineage = {"topic": Topic(topic).id, "record": f"r{number}"}
    return Triplet(f"r{number}", "retrieval", "find it", words, sentence(number + 3, 6), [sentence(number + 40, 5)], source, lineage)


def retrieval_set(folder: Path) -> None:
    """Twelve queries of six topics, two documents for each."""
    rows = range(12)
    write_jsonl(folder / "corpus.jsonl", ({"_id": f"d{i}", "title": "", "text": sentence(i, 8)} for i in range(24)))
    write_jsonl(folder / "queries.jsonl", ({"_id": f"q{i}", "text": sentence(i, 5)} for i in rows))
    write_jsonl(folder / "qrels" / "test.jsonl", ({"query-id": f"q{i}", "corpus-id": f"d{j}", "score": 1} for i in rows for j in (i, i + 12)))
    write_jsonl(folder / "topics.jsonl", ({"query-id": f"q{i}", "topic": TOPICS[i % 6], "group": f"{TOPICS[i % 6]}/{i % 2}"} for i in rows))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the run; beside it lies ``config.yaml``."""
    home = tmp_path_factory.mktemp("study")
    base = tiny_llama(home / "base")
    recipe = {
        "model": {
            "class_path": "speedlit.modules.embedding.EmbeddingModule",
            "init_args": {"backbone": {"name": str(base), "attention": "bidirectional"}, "tokens": {"max_length": 32, "pooling": "mean"}},
        },
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
        "data": {"class_path": "speedlit.data.datamodules.ContrastiveData", "init_args": {"shards": "data", "batch_size": 4}},
        "trainer": {"max_steps": 2, "accelerator": "cpu"},
    }
    (home / "embedder.yaml").write_text(yaml.safe_dump(recipe))
    config = {
        "name": "tiny",
        "root": str(home / "root"),
        "base": str(base),
        "prompts": "mini",
        "teacher": {"model": "m"},
        "prices": {"m": {"input": 10.0, "output": 20.0}},
        "embedder": {"recipe": str(home / "embedder.yaml")},
        "study": {"seeds": 2, "sizes": [6, 12, 48], "variants": ["full", "no-revisor", "junior-only"]},
    }
    (home / "config.yaml").write_text(yaml.safe_dump(config))
    made = parse(str(home / "config.yaml"))
    plain, root = made.plain(), home / "root"
    write_json(root / "run.json", {"identity": {key: plain[key] for key in IDENTITY}, "config": plain})
    folders = {name: stage.folder(root) for name, stage in stages().items() if name not in ("evaluation", "report", "embedder")}
    for name, folder in folders.items():
        ledger = SEED if name == "seed" else {**LEDGER, "notes": {"refined": {"records": 48, "triplets": 48}} if name == "dataset" else {}}
        write_json(folder / "manifest.json", {"seconds": 6.0, "ledger": ledger})
        write_json(folder / "_SUCCESS", {})
    write_rows(folders["topics"] / "topics.jsonl", [Topic(path) for path in TOPICS])
    of = [topic for topic, count in zip(TOPICS, FREQUENCY, strict=True) for _ in range(count)]
    for place, source in enumerate(("refined", "senior", "junior")):
        write_rows(folders["dataset"] / f"triplets-{source}.jsonl", [triplet(100 * place + i, topic, source) for i, topic in enumerate(of)])
    evaldata = folders["dataset"] / "evaldata"
    (evaldata / "Own").mkdir(parents=True)
    (evaldata / "tasks.json").write_text(json.dumps([{"folder": "Own", "type": "Retrieval", "prompt": {"query": "find it"}}]))
    retrieval_set(evaldata / "Own")
    return root


@pytest.fixture
def config(finished: Path) -> RunConfig:
    return parse(str(finished.parent / "config.yaml"))
