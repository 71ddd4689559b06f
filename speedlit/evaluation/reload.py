"""Run as a file in a fresh process: load an export through its own library and write token ids and vectors.

Nothing of speedlit is imported here, so that what works here works for people who never heard of it. The question is a JSON
file with the keys form, folder, texts, output, causal_lm, base, bidirectional; the answer an npz with ids (flat), sizes and
vectors (float64).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

Answer = tuple[list[int], Any]


def sentence_transformer(question: dict[str, Any]) -> Callable[[str], Answer]:
    """Documents through ``SentenceTransformer.encode``."""
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(question["folder"], device="cpu", model_kwargs={"dtype": torch.float32})

    def answer(text: str) -> Answer:
        return list(model.preprocess([text])["input_ids"][0].tolist()), model.encode([text], convert_to_numpy=True)[0]

    return answer


def onnx(question: dict[str, Any]) -> Callable[[str], Answer]:
    """Documents through onnxruntime, each between a shorter and a longer one: padding must change nothing."""
    import onnxruntime
    from transformers import AutoTokenizer

    folder = question["folder"]
    session = onnxruntime.InferenceSession(os.path.join(folder, "model.onnx"), providers=["CPUExecutionProvider"])
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def answer(text: str) -> Answer:
        batch = dict(tokenizer(["a", text, text + " and some words more"], truncation=True, padding=True, return_tensors="np"))
        ids = batch["input_ids"][1][batch["attention_mask"][1] == 1]
        return ids.tolist(), session.run(["sentence_embedding"], batch)[0][1]

    return answer


def hugging_face(question: dict[str, Any]) -> Callable[[str], Answer]:
    """The last hidden states' mean, or the logits behind the last token, through ``AutoModel`` (and peft for an adapter)."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    folder, loader = question["folder"], AutoModelForCausalLM if question["causal_lm"] else AutoModel
    adapter = question["form"] == "adapter"
    config = AutoConfig.from_pretrained(question["base"] if adapter else folder)
    if adapter and question["bidirectional"]:  # an adapter cannot carry it; its README says so
        config.is_causal, config.sliding_window = False, None
    model = loader.from_pretrained(question["base"] if adapter else folder, config=config, dtype=torch.float32)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder)
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def answer(text: str) -> Answer:
        ids = tokenizer(text, truncation=True)["input_ids"]
        batch = torch.tensor([ids])
        with torch.no_grad():
            out = model(input_ids=batch, attention_mask=torch.ones_like(batch))
        return ids, (out.logits[0, -1] if question["causal_lm"] else out.last_hidden_state[0].mean(0)).numpy()

    return answer


def main(path: str) -> None:
    """Answer one question."""
    import numpy as np

    with open(path, encoding="utf-8") as stream:
        question = json.load(stream)
    answer = {"sentence-transformers": sentence_transformer, "onnx": onnx}.get(question["form"], hugging_face)(question)
    found = [answer(text) for text in question["texts"]]
    ids = [number for row, _ in found for number in row]
    np.savez(question["output"], ids=ids, sizes=[len(row) for row, _ in found], vectors=np.stack([vector for _, vector in found]).astype(np.float64))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        main(name)
