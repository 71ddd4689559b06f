"""Models that a study can make where there is no model hub: networks with random weights, and the lower half of a decoder.

``untrained:bert`` and ``untrained:llama`` have the packaged base's tokenizer, width and depth; ``half:NAME`` keeps the first half of a decoder's layers.
Any other name is a model as everywhere: a folder, a hub id, ``speedlit:base``, ``package:NAME/SUBFOLDER``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from speedlit.errors import UsageError
from speedlit.files import remove

SEED = 0  # of random weights


def place(name: str, folder: Path) -> str:
    """The name or folder under which a model can be loaded; makes those that a study makes, once.

    Raises:
        UsageError: no such model can be made.
    """
    kind, colon, rest = name.partition(":")
    if not colon or kind not in ("untrained", "half"):
        return name
    out = folder / re.sub(r"[^\w.-]+", "-", name)
    if not (out / "config.json").is_file():
        temporary = out.with_name(f".{out.name}.tmp")
        remove(temporary)
        save(untrained(rest, name) if kind == "untrained" else half(rest), temporary)
        remove(out)
        temporary.rename(out)
    return str(out)


def save(made: tuple[Any, Any], folder: Path) -> None:
    """A model and its tokenizer as a folder; config.json counts as the mark that it is whole."""
    model, tokenizer = made
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def untrained(kind: str, name: str) -> tuple[Any, Any]:
    """A network of the packaged base's size with random weights."""
    import torch
    from transformers import BertConfig, BertModel, LlamaForCausalLM

    from speedlit.evaluation.state import same_randomness
    from speedlit.models.backbone import Backbone, load_config, load_tokenizer, resolve

    base = resolve("speedlit:base")
    shape, tokenizer = load_config(base, Backbone(base)), load_tokenizer(base)
    with same_randomness():
        torch.manual_seed(SEED)
        if kind == "llama":
            return LlamaForCausalLM(shape), tokenizer
        if kind == "bert":
            same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "pad_token_id")
            return BertModel(BertConfig(**{key: getattr(shape, key) for key in same}), add_pooling_layer=False), tokenizer
    raise UsageError(f"model {name}: there are untrained:bert and untrained:llama")


def half(name: str) -> tuple[Any, Any]:
    """The first half of a decoder's layers.

    Raises:
        UsageError: a model whose layers are not where decoders have them.
    """
    from speedlit.models.backbone import Backbone

    backbone = Backbone(name)
    model = backbone.build(head=True)
    layers = getattr(model.base_model, "layers", None)
    if layers is None or len(layers) < 2:
        raise UsageError(f"model half:{name}: {name} is no decoder with two layers or more; name another model")
    model.base_model.layers = layers[: len(layers) // 2]
    model.config.num_hidden_layers = len(layers) // 2
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[: len(layers) // 2]
    return model, backbone.tokenizer()
