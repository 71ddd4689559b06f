"""Every format x backbone x way of training: through the target library in a fresh process the same vectors, and from mteb's own command the same score."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import speedlit.export as exporting
from speedlit.data.tokens import TokenContract
from speedlit.errors import UsageError
from speedlit.evaluation.folders import open_encoder
from speedlit.evaluation.run import evaluate
from speedlit.evaluation.tasks import load_tasks
from speedlit.files import write_json
from speedlit.models.adapter import LoRA, QLoRA
from speedlit.models.backbone import Backbone
from speedlit.models.folder import save_folder
from tests.evaluation.conftest import jsonl
from tests.helpers import sentence, tiny_bert, tiny_llama, tiny_mistral, tiny_qwen3

SHAPES = {
    "llama": (tiny_llama, "causal", TokenContract(pooling="last", max_length=48)),
    "mistral": (tiny_mistral, "bidirectional", TokenContract(pooling="mean", max_length=48)),
    "qwen3": (tiny_qwen3, "causal", TokenContract(pooling="last", max_length=48)),
    "bert": (tiny_bert, "bidirectional", TokenContract(pooling="mean", max_length=48, query_template="{text}")),
}
ADAPTERS = {"lora": LoRA(r=2, alpha=4), "qlora": QLoRA(r=2, alpha=4, compute="float32", storage="float32"), "full": None}
FORMATS = tuple(form for form in exporting.FORMATS if form != "onnx")  # which test_onnx.py has
RELOAD = Path(exporting.__file__).parent / "evaluation" / "reload.py"


def train(root, shape, way):
    """One real step on the way that is named, written as a fit writes it."""
    make, attention, tokens = SHAPES[shape]
    base, adapter = root / shape / "base", ADAPTERS[way]
    if not base.exists():
        make(base)
    backbone = Backbone(str(base), attention=attention)
    model = backbone.build(False, adapter.quantization() if adapter else None)
    torch.manual_seed(1)
    model = adapter.apply(model) if adapter else model
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    with torch.no_grad():
        for weight in weights:  # lora_B is zero at the start
            weight += 0.05 * torch.randn_like(weight)
    optimizer = torch.optim.Adam(weights, lr=0.01)
    model(input_ids=torch.arange(5, 25).view(2, 10)).last_hidden_state.square().mean().backward()
    optimizer.step()
    return save_folder(model.eval(), backbone.tokenizer(), root / f"{shape}-{way}" / "fit" / "model", role="embedder", backbone=backbone, tokens=tokens)


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """All exports, each with what it must reproduce; the fresh process comes once for all of them, not once for each."""
    root, asked = tmp_path_factory.mktemp("trips"), {}
    with pytest.MonkeyPatch.context() as patch:
        for shape in SHAPES:
            for way in ADAPTERS:
                model = train(root, shape, way)
                for form in FORMATS:
                    name = f"{shape}-{way}/{form}"
                    if (way, form) == ("full", "adapter"):  # four of the 36 combinations: there is no adapter to export
                        with pytest.raises(UsageError, match="holds full weights and no adapter: export it as merged or sentence-transformers"):
                            exporting.export(model, root / name, form)
                        continue
                    patch.setattr(exporting, "compare", lambda _, question, expected, floor, name=name: asked.setdefault(name, (question, expected)) and 1.0)
                    exporting.export(model, root / name, form)
    return root, asked


def fresh(*words, cwd):
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(cwd / "datasets"), "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_the_target_library_gives_the_same_ids_and_vectors(exports):
    root, asked = exports
    files = []
    for name, (question, expected) in asked.items():
        file = root / f"{name.replace('/', '-')}.json"
        write_json(file, {**question, "folder": str(root / name), "texts": expected["texts"], "output": str(file.with_suffix(".npz"))})
        files.append(file)
    assert len(files) == 4 * 3 * 3 - 4
    fresh(RELOAD, *files, cwd=root)
    for file, (name, (_, expected)) in zip(files, asked.items(), strict=True):
        assert exporting.judge(file.with_suffix(".npz"), expected, name, 0.9999) >= 0.9999
    suffixes = {path.suffix for name in asked for path in (root / name).rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".md", ".jinja", ".py"}, suffixes
    assert {name for name in asked if list((root / name).rglob("*.py"))} == {"mistral-lora/adapter", "mistral-qlora/adapter"}


@pytest.mark.slow
def test_without_leave_to_run_its_code_an_adapter_of_both_directions_is_not_read_as_another_model(exports):
    from sentence_transformers import SentenceTransformer

    root, _ = exports
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(root / "mistral-lora" / "adapter"), device="cpu")


@pytest.mark.slow
def test_mteb_run_gives_the_same_score(exports):
    """In the results of mteb's own command, for all three formats: pooling, prompts and attention travel with each."""
    root, asked = exports
    here = root / "work" / "here"  # as deep as the exports, because an adapter names a local base relative to itself
    rows = [{"sentence1": sentence(i, 5), "sentence2": sentence(i + i % 7, 6), "score": float(5 - i % 7 * 5 / 6)} for i in range(40)]
    jsonl(here / "mteb" / "stsbenchmark-sts" / "test.jsonl", rows)  # mteb reads a folder of its dataset's name in place of the hub
    (here / "mteb" / "tasks.json").write_text(json.dumps([{"folder": "stsbenchmark-sts", "task": "STSBenchmark"}]))
    fresh(Path(__file__).parent / "mteb_cli.py", *(f"{name}={root / name}" for name in asked), cwd=here)
    tasks = load_tasks(data=here / "mteb")
    scores = set()
    for model in sorted({name.split("/")[0] for name in asked}):
        ours = evaluate(open_encoder(root / model / "fit"), tasks)["STSBenchmark"]
        for form in FORMATS:
            if f"{model}/{form}" not in asked:
                continue
            (file,) = (here / "results" / "results" / f"{model}__{form}").rglob("STSBenchmark.json")
            theirs = json.loads(file.read_text())["scores"]["test"][0]["main_score"]
            assert theirs == pytest.approx(ours, abs=1e-4), f"{model} as {form}"
        scores.add(round(ours, 4))
    assert len(scores) > 6, "the models differ, so equal scores mean something"
