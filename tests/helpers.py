"""Tiny random models and a tokenizer of their own, saved as Hugging Face folders: what the tests train and load."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import logging

TEXT = (
    "the sun is warm and a blue whale sings in deep water while old trains carry coal to the north where seven painters mix "
    "red green yellow colour on paper for a letter about cheese bread apples music rivers stones light winter summer gardens"
)
WORDS = TEXT.split()
logging.disable_progress_bar()


def sentence(index: int, length: int = 6) -> str:
    """A sentence that depends on ``index`` only."""
    return " ".join(WORDS[(index * 7 + step * (index % 5 + 1)) % len(WORDS)] for step in range(length))


def tiny_tokenizer(folder: Path, style: str = "llama") -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 pieces, saved to ``folder``. ``style`` bert has [CLS] and [SEP] in place of <s> and </s>."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"] if style == "llama" else ["[PAD]", "[CLS]", "[SEP]"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    raw.train_from_iterator([sentence(i, 12) for i in range(300)], trainer)
    names = ("pad_token", "bos_token", "eos_token") if style == "llama" else ("pad_token", "cls_token", "sep_token")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=512, **dict(zip(names, special, strict=True)))
    tokenizer.save_pretrained(folder)
    return tokenizer


def _decoder(folder: Path, config_class: type, model_class: type, seed: int, **over: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer(folder)
    settings = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(seed)
    model_class(config_class(**{**settings, **over})).save_pretrained(folder)
    return folder


def tiny_llama(folder: Path, seed: int = 0, **over: object) -> Path:
    """A 2-layer Llama of hidden size 32 with its tokenizer; ``over`` changes its config."""
    return _decoder(folder, LlamaConfig, LlamaForCausalLM, seed, **over)


def tiny_mistral(folder: Path, seed: int = 0, **over: object) -> Path:
    """A 2-layer Mistral with a sliding window of 4."""
    return _decoder(folder, MistralConfig, MistralForCausalLM, seed, **{"sliding_window": 4, **over})


def tiny_qwen3(folder: Path, seed: int = 0, **over: object) -> Path:
    """A 2-layer Qwen3."""
    return _decoder(folder, Qwen3Config, Qwen3ForCausalLM, seed, **{"head_dim": 8, **over})


def tiny_bert(folder: Path, seed: int = 0, **over: object) -> Path:
    """A 2-layer BERT encoder with dropout 0.1."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer(folder, "bert")
    torch.manual_seed(seed)
    settings = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
    BertModel(BertConfig(**{**settings, "initializer_range": 0.2, **over})).save_pretrained(folder)
    return folder


def sft_rows(count: int) -> list[dict[str, object]]:
    """Rows of uneven lengths for the sft shape."""
    return [{"id": f"s{i}", "prompt": sentence(i, 3 + i % 5), "completion": " " + sentence(i + 9, 2 + i % 7)} for i in range(count)]


def preference_rows(count: int) -> list[dict[str, object]]:
    """Rows for the preference shape."""
    return [
        {"id": f"p{i}", "prompt": sentence(i, 3 + i % 5), "chosen": " " + sentence(i + 9, 2 + i % 7), "rejected": " " + sentence(i + 31, 3 + i % 4)}
        for i in range(count)
    ]


def contrastive_rows(count: int, kinds: tuple[str, ...] = ("retrieval", "sts"), negatives: int = 1) -> list[dict[str, object]]:
    """Rows for the contrastive shape, kinds in turn."""
    return [
        {
            "id": f"c{i}", "kind": kinds[i % len(kinds)], "instruction": "find it", "query": sentence(i, 3 + i % 3), "positive": sentence(i + 5, 4 + i % 5),
            "negatives": [sentence(i + 50 + n, 4) for n in range(negatives)],
        }
        for i in range(count)
    ]  # fmt: skip
