"""Round trips: what is exported gives the same vectors in a fresh process, through the library it is for."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from speedlit.commands.export import run
from speedlit.data.tokens import TokenContract
from speedlit.errors import SpeedlitError, UsageError
from speedlit.export import export, sample_texts
from speedlit.models.adapter import LoRA
from speedlit.models.backbone import Backbone
from speedlit.models.folder import save_folder
from tests.helpers import tiny_bert, tiny_llama, tiny_mistral

SHAPES = {
    "llama-last": (tiny_llama, "causal", TokenContract(pooling="last", max_length=64)),
    "mistral-both-ways": (tiny_mistral, "bidirectional", TokenContract(pooling="weighted_mean", max_length=64, eos=False)),  # has a sliding window
    "bert-mean": (tiny_bert, "bidirectional", TokenContract(pooling="mean", max_length=64, query_template="{text}")),
}


def trained(folder: Path, shape: str, lora: bool, role: str = "embedder") -> Path:
    """A model folder as a fit leaves it, with weights away from where they started."""
    make, attention, tokens = SHAPES[shape]
    backbone = Backbone(str(make(folder / "base")), attention=attention)
    model = backbone.build(role == "generator")
    torch.manual_seed(1)
    if lora:
        model = LoRA(r=2, alpha=2).apply(model)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad or not lora:
                weight += 0.05 * torch.randn_like(weight)
    return save_folder(model.eval(), backbone.tokenizer(), folder / "fit" / "model", role=role, backbone=backbone, tokens=tokens)


KINDS = [("llama-last", True), ("llama-last", False), ("bert-mean", True), ("bert-mean", False), ("mistral-both-ways", True)]


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "lora"), KINDS)
def test_sentence_transformers_round_trip(tmp_path, shape, lora):
    model = trained(tmp_path, shape, lora)
    done = export(model, tmp_path / "out", "sentence-transformers")
    assert done["texts"] == 32 and done["cosine"] >= 0.9999
    assert not list((tmp_path / "out").rglob("*.bin"))
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "out").rglob("*.json"))

    from sentence_transformers import SentenceTransformer

    from speedlit.evaluation.folders import open_encoder

    theirs, ours = SentenceTransformer(str(tmp_path / "out"), device="cpu"), open_encoder(model)
    texts = sample_texts()
    assert np.abs(theirs.encode(texts) - ours.vectors(texts)).max() < 1e-4  # batches with padding, too
    prompt = theirs.prompts["query"]
    instructed = ours.vectors(texts, "Given a query, retrieve relevant text")
    assert np.abs(theirs.encode_query(texts) - instructed).max() < 1e-4, prompt
    again = open_encoder(tmp_path / "out")
    assert np.abs(again.vectors(texts) - ours.vectors(texts)).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "form"), [("mistral-both-ways", "adapter"), ("mistral-both-ways", "merged"), ("bert-mean", "adapter")])
def test_transformers_and_peft_round_trip(tmp_path, shape, form):
    done = export(trained(tmp_path, shape, lora=True), tmp_path / "out", form)
    assert done["cosine"] >= 0.9999


@pytest.mark.slow
def test_generator_round_trip(tmp_path):
    done = export(trained(tmp_path, "llama-last", lora=True, role="generator"), tmp_path / "out", "merged")
    assert done["cosine"] >= 0.9999


def test_a_model_that_is_not_the_same_there_is_removed(tmp_path, monkeypatch):
    import speedlit.export as module

    model = trained(tmp_path, "bert-mean", lora=True)
    original = module._write_modules

    def forget_pooling(loaded, target):
        original(loaded, target)
        config = json.loads((target / "1_Pooling" / "config.json").read_text())
        config.update(pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)
        (target / "1_Pooling" / "config.json").write_text(json.dumps(config))

    monkeypatch.setattr(module, "_write_modules", forget_pooling)
    with pytest.raises(SpeedlitError, match="gives other vectors .* has been removed"):
        export(model, tmp_path / "out", "sentence-transformers")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "fit"]


def test_errors(tmp_path, capsys):
    model = trained(tmp_path, "bert-mean", lora=False)
    with pytest.raises(UsageError, match="is not a model folder"):
        export(tmp_path / "base", tmp_path / "out", "merged")
    with pytest.raises(UsageError, match="unknown format 'gguf'"):
        export(model, tmp_path / "out", "gguf")
    with pytest.raises(UsageError, match="exists already"):
        export(model, tmp_path / "base", "merged")
    with pytest.raises(UsageError, match="holds full weights and no adapter"):
        export(model, tmp_path / "out", "adapter")
    shutil.rmtree(tmp_path / "fit")
    generator = trained(tmp_path / "g", "llama-last", lora=True, role="generator")
    with pytest.raises(UsageError, match="is a generator"):
        export(generator, tmp_path / "out", "sentence-transformers")
    shutil.rmtree(tmp_path / "g" / "base")
    with pytest.raises(UsageError, match="base"):
        export(generator, tmp_path / "out", "merged")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_command(tmp_path, capsys):
    trained(tmp_path, "bert-mean", lora=True)
    assert run([str(tmp_path / "fit"), "--to", str(tmp_path / "out")]) == 0
    assert "32 texts equal in a fresh process" in capsys.readouterr().out
