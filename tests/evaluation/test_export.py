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
from speedlit.files import write_json
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


KINDS = [("llama-last", False), ("mistral-both-ways", True)]  # test_round_trips.py has the others, in one process


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
@pytest.mark.parametrize(("shape", "form"), [("mistral-both-ways", "adapter"), ("bert-mean", "adapter")])
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

    def forget_pooling(loaded, target, switched):
        original(loaded, target, switched)
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
    with pytest.raises(UsageError, match="has no name of its own: name a new folder"):
        export(model, Path("."), "merged")
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


@pytest.fixture
def unproven(monkeypatch):
    """The comparison in a fresh process left out, where a test is about what stands beside the weights."""
    monkeypatch.setattr("speedlit.export.compare", lambda *_: 1.0)


def test_the_card_says_where_it_comes_from_and_how_it_scored(tmp_path, sets, unproven):
    from speedlit.evaluation.folders import open_encoder
    from speedlit.evaluation.run import evaluate
    from speedlit.evaluation.tasks import load_tasks

    root = tmp_path / "run"
    model = trained(tmp_path, "bert-mean", lora=False)
    stage = root / "stages" / "13-embedder"
    shutil.copytree(model.parent, stage)
    write_json(stage / "fit.json", {"steps": 7, "seconds": 3.0, "final": {"val_loss": 0.5}})
    write_json(root / "run.json", {"config": {"name": "mine", "seed": 3, "teacher": {"model": "big"}, "embedder": {"recipe": "fit/embedder"}}})
    row = {"calls": 5, "tokens": 60, "usd": 0.25, "local_seconds": 1.0}
    costs = {"stages": {"seed": row}, "other": row, "total": {**row, "calls": 10}, "accepted": 4}
    write_json(root / "summary.json", {"costs": costs, "stages": {"seed": {"accepted": 4, "rejected": {"length": 2}}}})
    tasks = load_tasks(["STSBenchmark"], renamed(sets, "Sts", "STSBenchmark"))
    score = evaluate(open_encoder(stage / "model"), tasks, output=root / "stages" / "14-evaluation" / "results" / "model")["STSBenchmark"]
    evaluate(open_encoder(tmp_path / "base", pooling="mean"), tasks, output=root / "stages" / "14-evaluation" / "results" / "untrained")
    export(stage, tmp_path / "out", "sentence-transformers", licence="mit")

    from huggingface_hub import ModelCard

    card = ModelCard.load(tmp_path / "out" / "README.md")  # the hub's own reader
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == ("mit", "sentence-transformers", "sentence-similarity")
    assert "mteb" in card.data.tags and card.data.base_model is None, "a folder of this machine is no name of the hub"
    found = [r for r in card.data.eval_results if r.metric_type == "cosine_spearman"]
    assert [(r.dataset_type, r.dataset_split, r.metric_value) for r in found] == [("mteb/stsbenchmark-sts", "test", round(100 * score, 3))]
    for words in ("run `mine`, seed 3, teacher `big`", "seed: 4 accepted, 2 rejected", "recipe: fit/embedder", "7 steps in 3 s; at the end val_loss 0.5",
                  "| total | 10 | 60 | 0.25 | 1 |", "4 accepted samples", f"| STSBenchmark | test | {100 * score:.2f} |", "Pooling: mean"):  # fmt: skip
        assert words in card.text, words
    assert str(tmp_path) not in card.content
    with pytest.raises(UsageError, match="holds no scores of the model in .* as it is now"):
        export(stage, tmp_path / "other", "merged", results=tmp_path / "base")


def renamed(sets, folder, task):
    """The folder's set as a local copy of a registered task."""
    write_json(sets / "tasks.json", [{"folder": folder, "task": task}])
    return sets


def test_prompts_of_the_export_are_what_the_encoder_asks(tmp_path, unproven):
    import mteb
    from mteb.models.abs_encoder import get_prompt_name
    from mteb.types import PromptType

    from speedlit.evaluation.folders import open_encoder

    model = trained(tmp_path, "llama-last", lora=True)
    export(model, tmp_path / "out", "sentence-transformers")
    named = json.loads((tmp_path / "out" / "config_sentence_transformers.json").read_text())["prompts"]
    encoder, tokens = open_encoder(model), SHAPES["llama-last"][2]
    sides = [("SciFact", "query"), ("SciFact", "document"), ("AskUbuntuDupQuestions", "query")]
    for name, side in [("STSBenchmark", None), ("Banking77Classification", None), *sides]:
        prompt_type = PromptType(side) if side else None
        meta = mteb.get_task(name).metadata
        theirs = named.get(get_prompt_name(named, meta, prompt_type), "")
        assert theirs + "text" == tokens.fill("text", encoder.instruction_for(meta, prompt_type)), (name, side)


def test_the_chat_template_is_the_prompt_template(tmp_path, unproven):
    from transformers import AutoTokenizer, GenerationConfig

    contract = TokenContract(template='Say "it"\n{prompt}{{x}}\n')
    SHAPES["odd"] = (tiny_llama, "causal", contract)
    model = trained(tmp_path, "odd", lora=True, role="generator")
    export(model, tmp_path / "out", "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for content in ("the sun {prompt}", [{"type": "text", "text": "the sun {prompt}"}]):
        messages = [{"role": "system", "content": "unread"}, {"role": "user", "content": content}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert ids == contract.encode_prompt(tokenizer, "the sun {prompt}")
    settings = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (settings.eos_token_id, settings.pad_token_id, settings.do_sample) == ([2], 0, True)


def test_push(tmp_path, monkeypatch, capsys, unproven):
    model, calls = trained(tmp_path, "bert-mean", lora=True), []
    for words, said in (
        (["--push", "no owner"], "is no name of a repository; write OWNER/NAME"),
        (["--push", "alone"], "names no owner"),
        (["--public"], "--public says who may read"),
    ):
        with pytest.raises(UsageError, match=said):
            run([str(model), "--to", str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda _, name, **options: calls.append((name, options)) or f"https://hub/{name}")
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda _, **options: calls.append(sorted(p.name for p in options["folder_path"].iterdir())))
    assert run([str(model), "--to", str(tmp_path / "out"), "--push", "me/mine"]) == 0
    assert "pushed to https://hub/me/mine" in capsys.readouterr().out
    assert calls[0] == ("me/mine", {"private": True, "exist_ok": True}) and {"README.md", "model.safetensors", "modules.json"} <= set(calls[1])
    monkeypatch.undo()
    monkeypatch.setattr("speedlit.export.compare", lambda *_: 1.0)
    with pytest.raises(SpeedlitError, match="is finished, but me/mine could not be written to the hub: .*; then: hf upload me/mine"):
        run([str(model), "--to", str(tmp_path / "again"), "--push", "me/mine"])
    assert (tmp_path / "again" / "model.safetensors").is_file(), "the export stays"
