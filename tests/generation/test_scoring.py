"""Likelihoods of answers: the same as the model's own logits, whatever the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from speedlit.generation.scoring import sequence_logps
from speedlit.models.folder import load_folder
from tests.helpers import tiny_llama


def test_log_probabilities_equal_the_models_own(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    prompts, answers = ["one two", "a longer prompt than that", "three"], ["four", "five six seven", "eight nine"]
    found = sequence_logps(folder, prompts, answers, batch_size=2)
    loaded = load_folder(folder, role="generator")
    for prompt, answer, value in zip(prompts, answers, found, strict=True):
        ids, labels = loaded.tokens.encode_pair(loaded.tokenizer, prompt, answer)
        with torch.no_grad():
            logps = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = sum(float(logps[i - 1, ids[i]]) for i in range(1, len(ids)) if labels[i] != -100)
        assert value == pytest.approx(expected, abs=1e-3)
