"""``speedlit merge`` and ``speedlit mine``: what they make is what their names say."""

import json

import pytest
import torch

from speedlit.cli import main
from speedlit.data.shards import ShardSet, write_shards
from speedlit.data.tokens import TokenContract
from speedlit.errors import UsageError
from speedlit.evaluation.folders import open_encoder
from speedlit.export import export
from speedlit.merging import merge, slerp
from speedlit.mining import Rules, mine
from speedlit.models.adapter import LoRA
from speedlit.models.backbone import Backbone
from speedlit.models.folder import load_folder, save_folder
from tests.evaluation.conftest import bag_of_words, jsonl
from tests.helpers import tiny_bert

TOKENS = TokenContract(pooling="mean", max_length=64)


@pytest.fixture(scope="module")
def fits(tmp_path_factory):
    """Two adapters of one base and one full model, as fits leave them."""
    root = tmp_path_factory.mktemp("fits")
    tiny_bert(root / "base")
    return [adapted(root, f"seed{i}", seed=i) for i in (1, 2)] + [adapted(root, "full", seed=3, lora=False)]


def adapted(root, name, seed, lora=True, tokens=TOKENS):
    backbone = Backbone(str(root / "base"), attention="bidirectional")
    model = backbone.build(False)
    torch.manual_seed(seed)
    model = LoRA(r=2, alpha=2, targets=["query", "value"]).apply(model) if lora else model
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight) if weight.requires_grad else 0
    return save_folder(model.eval(), backbone.tokenizer(), root / name / "model", role="embedder", backbone=backbone, tokens=tokens)


def weights_of(folder):
    return load_folder(folder).model.state_dict()


def test_the_mean_of_adapters_is_the_mean_of_what_they_add(fits, tmp_path, capsys):
    assert main(["merge", str(fits[0].parent), str(fits[1]), "--to", str(tmp_path / "out"), "--weights", "3,1"]) == 0
    assert "average of 0.750 seed1, 0.250 seed2" in capsys.readouterr().out
    base, one, two, made = (weights_of(folder) for folder in (fits[0].parents[1] / "base", *fits[:2], tmp_path / "out"))
    moved = 0
    for name, weight in made.items():
        added = 0.75 * (one[name] - base[name]) + 0.25 * (two[name] - base[name])
        torch.testing.assert_close(weight, base[name] + added, atol=1e-6, rtol=0)
        moved += bool(added.abs().max() > 1e-3)
    assert moved == 4, "the query and value layers of both blocks"
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_what_was_merged_is_exported_and_evaluated(fits, tmp_path):
    merge(fits, tmp_path / "three")
    info = json.loads((tmp_path / "three" / "speedlit.json").read_text())
    assert info["merged"]["weights"] == pytest.approx([1 / 3] * 3) and [s["name"] for s in info["merged"]["sources"]] == ["seed1", "seed2", "full"]
    mean = sum(weights_of(folder)["encoder.layer.0.output.dense.weight"] for folder in fits) / 3
    torch.testing.assert_close(weights_of(tmp_path / "three")["encoder.layer.0.output.dense.weight"], mean)
    assert export(tmp_path / "three", tmp_path / "st", "sentence-transformers")["cosine"] >= 0.9999
    assert open_encoder(tmp_path / "three").vectors(["the sun is warm"]) == pytest.approx(open_encoder(tmp_path / "st").vectors(["the sun is warm"]), abs=1e-5)


def test_slerp(fits, tmp_path):
    right, up = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    torch.testing.assert_close(slerp(right, up, 0.5), torch.tensor([2**0.5, 2**0.5]))  # on the circle, where the mean lies inside it
    torch.testing.assert_close(slerp(right, 2 * right, 0.25), torch.tensor([2.5, 0.0]))
    torch.testing.assert_close(slerp(right, torch.zeros(2), 0.5), torch.tensor([1.0, 0.0]))
    merge([fits[0], fits[2]], tmp_path / "out", "slerp", [0.6, 0.4])
    name = "encoder.layer.0.output.dense.weight"
    one, two, made = (weights_of(folder)[name] for folder in (fits[0], fits[2], tmp_path / "out"))
    torch.testing.assert_close(made, slerp(one, two, 0.4))


def test_models_that_cannot_be_merged(fits, tmp_path):
    root = tmp_path / "other"
    tiny_bert(root / "base", hidden_size=16)
    wide, cut = adapted(root, "narrow", 4), adapted(fits[0].parents[1], "cut", 5, tokens=TokenContract(pooling="cls", max_length=64))
    for sources, options, said in (
        (fits[:1], {}, "two models or more"),
        (fits, {"method": "slerp"}, "exactly two models"),
        (fits, {"method": "ties"}, "unknown method 'ties': use average or slerp"),
        (fits, {"weights": [1, 1]}, "2 numbers for 3 models"),
        (fits, {"weights": [-1, 1, 1]}, "shares must be 0 or more"),
        ([fits[0], wide], {}, "not of one architecture"),
        ([fits[0], cut], {}, "token contract .pooling: 'mean' and 'cls'."),
        ([fits[0], root / "base"], {}, "is not a model folder"),
    ):
        with pytest.raises(UsageError, match=said):
            merge(sources, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# -- mining -----------------------------------------------------------------------------------------------------------


def row(query, positive, negatives=("where fish",), kind="retrieval", **more):
    return {"kind": kind, "instruction": "", "query": query, "positive": positive, "negatives": list(negatives), **more}


PAIRS = [(a, f"{a} {a} {c}") for a, c in zip(("cat", "dog", "bird"), ("red", "blue", "green"), strict=True)]
PAIRS += [(f"{a} {c}", f"{a} {c}") for a, c in zip(("cat", "dog", "bird"), ("red", "blue", "green"), strict=True)]


def cosine(encoder, query, document):
    one, two = encoder.vectors([query, document])
    return float(one @ two)


def test_negatives_are_the_closest_documents_that_stay_below_the_margin():
    encoder, rows = bag_of_words(), [row(q, p) for q, p in PAIRS]
    margin = 0.2
    made, found = mine(rows, encoder, Rules(negatives=2, margin=margin))
    documents = [p for _, p in PAIRS]
    barred = 0
    for before, after in zip(rows, made, strict=True):
        limit = cosine(encoder, before["query"], before["positive"]) * (1 - margin)
        scores = {d: cosine(encoder, before["query"], d) for d in documents if d != before["positive"]}
        barred += sum(score > limit for score in scores.values())
        allowed = sorted((d for d in scores if scores[d] <= limit), key=lambda d: -scores[d])
        assert after["negatives"] == ["where fish", *allowed[:2]], "joined behind the row's own"
    assert barred, "some documents come too close, such as `cat red` for `cat`"
    assert found["mined"] == 12 and found["with"] == 6


def test_kinds_do_not_mix_and_a_corpus_is_for_all():
    rows = [row("cat", "cat cat", kind="a"), row("dog", "dog dog", kind="a"), row("fish", "fish fish", kind="b"), row("cat", "my cat", kind="c")]
    made, _ = mine(rows, bag_of_words(), Rules(negatives=9, margin=0.0, replace=True))
    assert [r["negatives"] for r in made] == [["dog dog"], ["cat cat"], ["where fish"], ["where fish"]], "alone in its kind: its own negatives stay"
    made, _ = mine(rows, bag_of_words(), Rules(negatives=9, margin=0.0, replace=True), corpus=["red green blue"])
    assert all("red green blue" in r["negatives"] for r in made)


def test_a_second_positive_of_a_query_is_no_negative_of_it():
    rows = [row("cat", "cat cat"), row("cat", "my cat"), row("dog", "dog dog")]
    made, _ = mine(rows, bag_of_words(), Rules(negatives=9, margin=0.0, replace=True))
    assert made[0]["negatives"] == ["dog dog"] == made[1]["negatives"]


def test_queries_are_asked_under_their_instruction():
    seen = []
    encoder = bag_of_words()
    original = encoder.vectors
    encoder.vectors = lambda texts, instruction=None: seen.append((tuple(texts), instruction)) or original(texts, instruction)
    mine([{**row("cat", "cat cat"), "instruction": "Find"}, row("dog", "dog dog")], encoder, Rules())
    assert (("cat",), "Find") in seen and (("dog",), None) in seen and (("cat cat", "dog dog"), None) in seen


def test_mine_command(fits, tmp_path, capsys):
    rows = [{"query": q, "positive": p} for q, p in PAIRS]
    jsonl(tmp_path / "pairs.jsonl", rows)
    jsonl(tmp_path / "corpus.jsonl", [{"text": "where is my fish"}])
    words = ["mine", str(tmp_path / "pairs.jsonl"), "--model", str(fits[0]), "--corpus", str(tmp_path / "corpus.jsonl"), "--margin", "0"]
    assert main([*words, "--to", str(tmp_path / "mined")]) == 0
    said = capsys.readouterr()
    assert "6 rows" in said.out and "Computing" not in said.err
    shards = list(ShardSet(tmp_path / "mined"))
    assert [r["query"] for r in shards] == [q for q, _ in PAIRS] and any(r["negatives"] for r in shards)
    assert main(["mine", str(tmp_path / "mined"), "--model", str(fits[0]), "--to", str(tmp_path / "again.jsonl"), "--replace"]) == 0
    assert len((tmp_path / "again.jsonl").read_text().splitlines()) == 6


def test_mine_errors(fits, tmp_path, capsys):
    jsonl(tmp_path / "pairs.jsonl", [{"query": "a", "positive": "b", "negatives": ["c"], "scores": [1.0, 0.5]}])
    write_shards([{"prompt": "a", "completion": "b"}], tmp_path / "sft", "sft")
    jsonl(tmp_path / "corpus.jsonl", [{"title": "only"}])
    (tmp_path / "empty.jsonl").write_text("")
    for words, said in (
        (["pairs.jsonl", "--negatives", "0"], "--negatives is 0"),
        (["pairs.jsonl", "--margin", "1.5"], "--margin is 1.5"),
        (["pairs.jsonl", "--among", "2"], "--among is 2"),
        (["pairs.jsonl"], "row 0 has scores, and mined negatives have none: add --replace"),
        (["pairs.jsonl", "--corpus", str(tmp_path / "corpus.jsonl")], "row 0 of the corpus has no text"),
        (["sft"], "holds sft rows"),
        (["empty.jsonl"], "is empty"),
        (["nothing.jsonl"], "no such file"),
    ):
        assert main(["mine", str(tmp_path / words[0]), "--model", str(fits[0]), "--to", str(tmp_path / "out.jsonl"), *words[1:]]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()
