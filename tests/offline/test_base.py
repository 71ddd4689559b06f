"""The shipped base model: its checksum, its tokenizer, and that its recipe gives the same bytes twice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from speedlit.files import sha256_file

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "speedlit" / "offline" / "base"


def test_the_shipped_files_are_those_of_the_recipe():
    recipe = json.loads((BASE / "RECIPE.json").read_text())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(recipe["sha256"])
    assert {name: sha256_file(BASE / name) for name in recipe["sha256"]} == recipe["sha256"]
    assert sum(path.stat().st_size for path in BASE.iterdir()) <= 8 << 20


def test_any_text_can_be_encoded():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    for text in ('{"S1": "a crimson boat", "S2": ""}', "Zażółć gęślą jaźń 漢字 🙂\n\ttab  two", "UPPER lower_case 123"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert len(tokenizer(" crimson", add_special_tokens=False)["input_ids"]) == 1


def test_the_base_knows_synonyms():
    """After a fact, the base prefers the same fact in other words to another fact of the attribute."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(BASE), AutoModelForCausalLM.from_pretrained(BASE)
    trios = [(" crimson", " scarlet", " azure"), (" ancient", " antique", " modern"), (" wooden", " timber", " steel"), (" damp", " moist", " odd")]
    for word, same, other in trios:
        ids = tokenizer(f"There is a{word} boat. In other words: There is a", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([[tokenizer.bos_token_id, *ids]])).logits[0, -1]
        first, second = (tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in (same, other))
        assert logits[first] > logits[second] + 1, (word, same, other)


@pytest.mark.slow
def test_a_short_rebuild_gives_the_same_bytes_twice(tmp_path):
    for name in ("one", "two"):
        command = [sys.executable, str(ROOT / "scripts/build_base.py"), "--out", str(tmp_path / name), "--steps", "10", "--second", "4"]
        subprocess.run(command, check=True, capture_output=True)
    recipes = [json.loads((tmp_path / name / "RECIPE.json").read_text()) for name in ("one", "two")]
    assert recipes[0] == recipes[1]
    shipped = json.loads((BASE / "RECIPE.json").read_text())
    assert recipes[0]["sha256"]["tokenizer.json"] == shipped["sha256"]["tokenizer.json"], "the corpus is no longer the one that the shipped base was trained on"
