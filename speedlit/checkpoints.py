"""The content of a checkpoint: one file, or a folder of shares (torch's distributed checkpoint) beside its ``meta.pt``."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.tensor import DTensor

from speedlit.errors import UsageError

META = "meta.pt"


def is_checkpoint(path: Path) -> bool:
    """Whether a place is a checkpoint of a fit: a ``.ckpt`` file, or a folder of shares."""
    return path.suffix == ".ckpt" and path.is_file() or (path / META).is_file()


def trained(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What a checkpoint says of its module (empty where that isn't there), and the trained weights by name; nothing of it is run as code.

    Raises:
        UsageError: damaged, or no checkpoint at all.
    """
    if path.is_dir():
        content = read_folder(path, only="state_dict.")
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UsageError(f"checkpoint {path} is damaged or holds more than numbers ({reason}); name another one") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise UsageError(f"{path} is no checkpoint of a fit (it has no state_dict); name a model folder, or a checkpoint that `speedlit fit` has written")
    return dict(content.get("speedlit") or {}), dict(content["state_dict"])


def read_folder(path: Path, templates: dict[str, torch.Tensor] | None = None, only: str | None = None) -> dict[str, Any]:
    """A checkpoint from a folder of shares, whoever wrote it.

    Args:
        path: the folder.
        templates: weights that are spread; a tensor of the same name and shape comes back as this process's share. None: all whole.
        only: read those tensors whose names begin so, and nothing that would be run as code; the others are None. Null: everything.

    Raises:
        UsageError: the folder is no checkpoint, or is damaged.
    """
    reader = dcp.FileSystemReader(path)
    try:
        with torch.serialization.safe_globals([Place, (Place, "speedlit.strategies.Place")]):  # as earlier versions wrote it
            rest = torch.load(path / META, weights_only=only is not None)
        stored = {name: what for name, what in reader.read_metadata().state_dict_metadata.items() if name.startswith(only or "")}
        tensors = {name: _empty(name, what, templates or {}) for name, what in stored.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it should be, where one process reads alone
            dcp.load(tensors, storage_reader=reader, no_dist=templates is None)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, dcp.api.CheckpointException) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(f"checkpoint {path} is no whole sharded checkpoint ({reason}); name another one, or remove it to start from the beginning") from error
    return dict(mapped(rest, lambda place: tensors.get(place.name) if isinstance(place, Place) else place))


def _empty(name: str, what: Any, templates: dict[str, torch.Tensor]) -> torch.Tensor:
    like = templates.get(name, templates.get(name.rpartition(".")[0]))
    if like is not None and like.shape == what.size and isinstance(like, DTensor):
        return torch.zeros_like(like.detach(), dtype=what.properties.dtype)
    return torch.zeros(what.size, dtype=what.properties.dtype)


class Place:
    """Where a tensor stood that lies among the shares."""

    def __init__(self, name: str) -> None:
        self.name = name


def taken_out(value: Any, tensors: dict[str, torch.Tensor], name: str = "") -> Any:
    """``value`` with a place for each tensor of the weights and of the optimizer; the tensors go to ``tensors``."""
    if isinstance(value, torch.Tensor) and name.startswith(("state_dict.", "optimizer_states.")):
        tensors[name] = value
        return Place(name)
    if isinstance(value, Mapping):
        return {key: taken_out(item, tensors, f"{name}.{key}" if name else str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [taken_out(item, tensors, f"{name}.{i}") for i, item in enumerate(value)]
    return value


def mapped(value: Any, change: Any) -> Any:
    """``value`` with each tensor and each place changed."""
    if isinstance(value, torch.Tensor | Place):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [mapped(item, change) for item in value]
    return value
