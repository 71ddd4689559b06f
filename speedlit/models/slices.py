"""A large network whose weights no process ever holds whole: each reads its share of every weight out of the safetensors files.

The network is built hollow, gets its adapter, is spread over the processes without memory, and then filled. What can't be read
that way is loaded whole by each process, as without spreading: files that are no safetensors, models whose weights are stored
under other names or in another form than they have in the network, weights in 4 bits, and a base that finished adapters are merged into.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from speedlit.models.backbone import Backbone, load_config
from speedlit.models.hollow import hollow, replace
from speedlit.models.sharding import inner
from speedlit.shares import part

PLACES = "slices"
Places = dict[str, tuple[str, str]]


def to_be_filled(backbone: Backbone, head: bool) -> Any:
    """The hollow network, which remembers where its weights lie; None if they can't be read in slices.

    Args:
        backbone: which network.
        head: a causal language model, else the network without head.
    """
    place, adapters = backbone.chain()
    if adapters or getattr(load_config(place, backbone), "quantization_config", None) is not None:
        return None
    files = _files(place, backbone.revision)
    model: Any = hollow(place, head, backbone) if files else None
    places = _places(model, files) if model is not None and _plain(model) else None
    if places is None:
        return None
    setattr(model, PLACES, places)
    if backbone.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def empty(model: Any) -> Any:
    """Take the stand-ins out of a hollow network, so that it can be copied and spread; any other is left as it is."""
    places = getattr(inner(model), PLACES, {})
    replace(model, lambda weight: torch.empty_like(weight, device="meta"), _stored(model, places))
    return model


def fill(model: Any, device: torch.device) -> None:
    """Read this process's shares of the weights of a network that has been spread empty.

    Args:
        model: with or without adapter.
        device: where the shares wait.
    """
    places: Places = getattr(inner(model), PLACES, {})
    names = {id(weight): _own(name) for name, weight in model.named_parameters() if _own(name) in places}

    def filled(weight: torch.Tensor) -> torch.Tensor:
        assert isinstance(weight, DTensor)
        found = torch.empty_like(weight, device=device)
        where = part(weight)
        if all(place.stop > place.start for place in where):
            mine: Any = found
            mine.to_local().copy_(read(*places[names[id(weight)]], where))
        return found

    with torch.no_grad():
        replace(model, filled, _stored(model, places))


def read(file: str, key: str, where: tuple[slice, ...]) -> torch.Tensor:
    """A part of a stored tensor; nothing else of the file is read."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stored:
        found: torch.Tensor = stored.get_slice(key)[where]
    return found


def _stored(model: Any, places: Places) -> set[str]:
    return {name for name, _ in model.named_parameters(remove_duplicate=False) if _own(name) in places}


def _own(name: str) -> str:
    """The name that a weight had before an adapter was put around it."""
    name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
    return name.replace(".original_module.", ".").replace(".modules_to_save.default.", ".")


def _files(place: str, revision: str | None) -> dict[str, str]:
    """For each stored tensor the file that it lies in; empty where there are no safetensors."""
    from safetensors import safe_open
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    only: Any = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    files = [cached_file(place, "model.safetensors", **only)]
    if files == [None] and (index := cached_file(place, "model.safetensors.index.json", **only)) is not None:
        files, _ = get_checkpoint_shard_files(place, index, revision=revision)
    found = {}
    for file in files:
        if file is not None and Path(file).is_file():
            with safe_open(file, framework="pt") as stored:
                found.update(dict.fromkeys(stored.keys(), str(file)))
    return found


def _plain(model: Any) -> bool:
    """Whether a network's weights are stored as they are, under their own names, and are all that it reads."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    kept = [getattr(model, name, None) for name in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")]
    if get_model_conversion_mapping(model, add_legacy=False) or any(kept):
        return False
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return set(model.state_dict()) <= names and not any(buffer.is_meta for buffer in model.buffers())


def _places(model: Any, files: dict[str, str]) -> Places | None:
    """File and stored name of each weight: its own, or that of a model with or without head; None if one is not there in its shape."""
    from safetensors import safe_open

    prefix = f"{model.base_model_prefix}."
    weights = dict(model.named_parameters())
    tied = [name for name, _ in model.named_parameters(remove_duplicate=False) if name not in weights]
    every = [*weights, *tied]
    for stored in ({n: n for n in every}, {n: prefix + n for n in every}, {n: n.removeprefix(prefix) for n in every}):
        if all(stored[name] in files for name in weights) and not any(stored[name] in files for name in tied):
            places = {name: (files[stored[name]], stored[name]) for name in weights}
            break
    else:
        return None
    by_file: dict[str, list[str]] = {}
    for name, (file, _) in places.items():
        by_file.setdefault(file, []).append(name)
    for file, names in by_file.items():
        with safe_open(file, framework="pt") as opened:
            if any(opened.get_slice(places[name][1]).get_shape() != list(weights[name].shape) for name in names):
                return None
    return {**places, **{name: places[next(n for n, w in weights.items() if w is model.get_parameter(name))] for name in tied}}
