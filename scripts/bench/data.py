"""What both sides of a row read: rows in the shape of the demo's, and rows with the lengths of SPEED's data."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

VOCABULARY = 8192


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Prompt and completion pairs of uneven length."""
    rng = random.Random(seed)
    words = ["a", "crimson", "wooden", "boat", "near", "the", "woods", "owned", "by", "writer", "for", "travel", "that", "is", "damp", "old"]
    out = []
    for i in range(count):
        say = lambda n: " ".join(rng.choice(words) for _ in range(n))  # noqa: E731
        prompt = f"Task: find boats by their colour.\nState {say(rng.randint(3, 20))}.\nWrite user_query and positive_document as JSON."
        record = {"user_query": say(rng.randint(2, 8)), "positive_document": say(rng.randint(4, 24))}
        out.append({"id": str(i), "prompt": prompt, "completion": json.dumps(record)})
    return out


class Writer:
    """Texts of so many tokens: the bench's tokenizer gives one to each word."""

    def __init__(self, seed: int, vocabulary: int = VOCABULARY) -> None:
        self.rng, self.vocabulary = random.Random(seed), vocabulary

    def length(self, median: int, sigma: float, cap: int) -> int:
        """Log-normal."""
        return max(4, min(cap, round(self.rng.lognormvariate(math.log(median), sigma))))

    def text(self, count: int) -> str:
        """So many random words."""
        return " ".join(f"w{self.rng.randrange(self.vocabulary - 3)}" for _ in range(count))


def sft_rows(count: int, seed: int = 0, cap: int = 1024) -> list[dict[str, str]]:
    """Prompt median 220 tokens, completion median 180, together at most ``cap``."""
    writer, out = Writer(seed), []
    for i in range(count):
        prompt = writer.length(220, 0.6, cap - 200)
        completion = writer.length(180, 0.6, cap - 2 - prompt)
        out.append({"id": f"s{i}", "prompt": writer.text(prompt) + " ", "completion": writer.text(completion)})
    return out


def preference_rows(count: int, seed: int = 0, cap: int = 1024) -> list[dict[str, str]]:
    """As ``sft_rows`` with two completions."""
    writer, out = Writer(seed), []
    for i in range(count):
        prompt = writer.length(220, 0.6, cap - 200)
        chosen, rejected = (writer.length(180, 0.6, cap - 2 - prompt) for _ in range(2))
        out.append({"id": f"p{i}", "prompt": writer.text(prompt) + " ", "chosen": writer.text(chosen), "rejected": writer.text(rejected)})
    return out


def contrastive_rows(count: int, seed: int = 0, cap: int = 510) -> list[dict[str, Any]]:
    """Query median 20 tokens, documents median 160, one hard negative."""
    writer, out = Writer(seed), []
    for i in range(count):
        query, positive, negative = (writer.text(writer.length(median, 0.7, cap)) for median in (20, 160, 160))
        out.append({"id": f"c{i}", "kind": "retrieval", "instruction": "", "query": query, "positive": positive, "negatives": [negative]})
    return out


def words(text: str) -> int:
    """Tokens of a text."""
    return len(text.split())


def needed(tokens: int, predicted: int, vocabulary: int = VOCABULARY) -> int:
    """FLOPs of training LoRA r 16 on the bench's model, counted as ``models/flops.py`` counts them: the pass of a reference is not in it."""
    layer, adapter = 4 * 384 * 384 + 3 * 384 * 1024, 16 * (4 * 2 * 384 + 3 * (384 + 1024))
    return tokens * 6 * (4 * layer + 6 * adapter) + predicted * 4 * 384 * vocabulary


def build_model(folder: Path, vocabulary: int = VOCABULARY) -> Path:
    """A Llama of 6 layers and hidden size 384 with random weights, and a tokenizer with one token per word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    place = folder / f"llama-{vocabulary}"
    if (place / "config.json").is_file():
        return place
    names = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i + 3 for i in range(vocabulary - 3)}}
    raw = Tokenizer(models.WordLevel(names, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=4096).save_pretrained(place)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=384, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=6,
        max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(place)
    return place
