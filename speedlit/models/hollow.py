"""A network without its weights: every layer is there with its name, shape and dtype, and a matrix takes no memory.

Adapters are put into it as into a whole one, with the same numbers at their start. What then stands in for a weight is a single
zero, repeated; the real ones come from elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from speedlit.models.backbone import Backbone, load_config
from speedlit.models.quiet import quiet


def hollow(place: str, head: bool, backbone: Backbone) -> Any:
    """The network at ``place`` as ``load_weights`` makes it, but for its weights.

    Args:
        place: folder or hub id that holds its config.
        head: a causal language model, else the network without head.
        backbone: says attention, dtype and implementation.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    quiet()
    kind: Any = AutoModelForCausalLM if head else AutoModel
    with torch.random.fork_rng(devices=[]), _NoWeights():  # who comes after draws what it would draw anyway
        model = kind.from_config(load_config(place, backbone), dtype=getattr(torch, backbone.dtype), attn_implementation=backbone.attn_implementation)
    if model.can_generate():
        model.generation_config = _generation(place, backbone.revision)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    replace(model, lambda weight: torch.zeros((), dtype=weight.dtype).expand(weight.shape))
    return model.eval()


def _generation(place: str, revision: str | None) -> Any:
    """The settings of generation as they come with weights: of a file of their own, or else what the config says of them."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(place, revision=revision or "main")
    except OSError:  # no such file, which is usual
        return GenerationConfig.from_pretrained(place, revision=revision or "main", config_file_name="config.json", _from_model_config=True)


def replace(model: Any, make: Any, names: set[str] | None = None) -> None:
    """Put other tensors in the place of weights; what is tied stays tied.

    Args:
        model: changed in place.
        make: the new tensor for an old weight.
        names: of the weights; None: all.
    """
    done: dict[int, torch.nn.Parameter] = {}
    for name, weight in list(model.named_parameters(remove_duplicate=False)):
        if names is not None and name not in names:
            continue
        if id(weight) not in done:
            done[id(weight)] = torch.nn.Parameter(make(weight), requires_grad=weight.requires_grad)
        layer, _, own = name.rpartition(".")
        setattr(model.get_submodule(layer), own, done[id(weight)])


class _NoWeights(TorchFunctionMode):
    """Matrices are made without memory; what is computed, such as the frequencies of rotary embeddings, is real."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = dict(keywords or {})
        if function is torch.empty and keywords.get("device") is None:
            keywords["device"] = "meta"
        return function(*arguments, **keywords)
