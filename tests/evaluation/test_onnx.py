"""The embedder as an ONNX graph: through onnxruntime in a fresh process the same ids and vectors, for texts of any number and length."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import speedlit.export as exporting
import speedlit.onnx_export as onnx_export
from speedlit.commands.export import run
from speedlit.errors import SpeedlitError, UsageError
from speedlit.evaluation.folders import open_encoder
from speedlit.files import read_json, write_json
from tests.evaluation.test_export import trained
from tests.evaluation.test_round_trips import RELOAD, SHAPES, train
from tests.helpers import sentence

pytest.importorskip("onnxscript", reason="pip install 'speedlit[onnx]'")
WAYS = {"llama": "lora", "mistral": "lora", "qwen3": "full", "bert": "full"}


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """All four kinds of model with what each must reproduce; the weights of one lie beside its graph, as those of a large one would."""
    root, asked = tmp_path_factory.mktemp("onnx"), {}
    for shape, way in WAYS.items():
        model = train(root, shape, way)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exporting, "compare", lambda _, question, expected, floor, shape=shape: asked.setdefault(shape, (question, expected)) and 1.0)
            if shape == "qwen3":
                patch.setattr(onnx_export, "ONE_FILE", 0)
            exporting.export(model, root / shape / "out", "onnx")
    return root, asked


@pytest.mark.slow
def test_onnxruntime_gives_the_same_ids_and_vectors(exports):
    root, asked = exports
    files = {shape: root / f"{shape}.json" for shape in asked}
    for shape, (question, expected) in asked.items():
        place = {"folder": str(root / shape / "out"), "output": str(files[shape].with_suffix(".npz"))}
        write_json(files[shape], {**question, **place, "texts": expected["texts"]})
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, str(RELOAD), *map(str, files.values())], cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for shape, (_, expected) in asked.items():
        assert exporting.judge(files[shape].with_suffix(".npz"), expected, shape, 0.9999) >= 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_and_length_are_free(exports, shape):
    import onnxruntime
    from transformers import AutoTokenizer

    folder = exports[0] / shape / "out"
    session, tokenizer = onnxruntime.InferenceSession(str(folder / "model.onnx")), AutoTokenizer.from_pretrained(folder)
    assert {entry.name: entry.shape for entry in session.get_inputs()} == dict.fromkeys(("input_ids", "attention_mask"), ["batch", "sequence"])
    ours = open_encoder(exports[0] / f"{shape}-{WAYS[shape]}" / "fit")
    query = read_json(folder / "config_sentence_transformers.json")["prompts"]["query"]
    for count in (1, 2, 7):
        texts = [sentence(i, 2 + 5 * (i % 4)) for i in range(count)]
        batch = dict(tokenizer([query + text for text in texts], padding=True, truncation=True, return_tensors="np"))
        (found,) = session.run(["sentence_embedding"], batch)
        assert np.abs(found - ours.vectors(texts, exporting.GENERIC)).max() < 1e-5


@pytest.mark.slow
def test_what_is_in_the_folder(exports):
    root, _ = exports
    for shape in SHAPES:
        files = {path.name for path in (root / shape / "out").iterdir()}
        needed = {"model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json", "speedlit.json", "config_sentence_transformers.json", "README.md"}
        assert files == needed | ({"model.onnx.data"} if shape == "qwen3" else set())
        contents = b"".join(path.read_bytes() for path in (root / shape / "out").iterdir())
        for place in (str(root), sys.prefix, exporting.__file__):
            assert place.encode() not in contents, "no path of the machine that wrote it"
        assert "session.run" in (root / shape / "out" / "README.md").read_text()
    with pytest.raises(UsageError, match=r"has no weights.*ONNX.*name the folder that was exported"):
        open_encoder(root / "bert" / "out")


@pytest.mark.slow
def test_a_graph_that_is_not_the_same_is_removed(tmp_path, monkeypatch):
    original = exporting.write_graph

    def first_token(loaded, target):
        original(replace(loaded, tokens=replace(loaded.tokens, pooling="cls")), target)

    model = trained(tmp_path, "bert-mean", lora=True)
    monkeypatch.setattr(exporting, "write_graph", first_token)
    with pytest.raises(SpeedlitError, match="the onnx export gives other vectors .* has been removed"):
        exporting.export(model, tmp_path / "out", "onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "fit"]


def test_what_cannot_be_written_is_told_in_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="the onnx format holds float32 weights.*leave out --dtype bfloat16"):
        run([str(tmp_path), "--to", str(tmp_path / "out"), "--format", "onnx", "--dtype", "bfloat16"])
    with pytest.raises(UsageError, match="is a generator: the onnx format is for embedders"):
        exporting.export(trained(tmp_path, "llama-last", lora=True, role="generator"), tmp_path / "out", "onnx")
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(UsageError, match=r"the onnx format needs onnxscript: pip install 'speedlit\[onnx\]'"):
        exporting.export(tmp_path, tmp_path / "out", "onnx")
