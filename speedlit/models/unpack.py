"""A checkpoint of a fit as a finished model folder: the folder that the fit would leave if it ended at that step.

The base's weights aren't read, only its config: the checkpoint holds what was trained.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from speedlit.data.tokens import TokenContract
from speedlit.errors import UsageError
from speedlit.files import disk_error, remove
from speedlit.models.adapter import LoRA
from speedlit.models.backbone import Backbone
from speedlit.models.folder import save_folder
from speedlit.models.hollow import hollow

WHOLE = ("LoRA", "QLoRA", None)  # adapters that can be rebuilt


def settings(role: str, head: bool, backbone: Backbone, adapter: Any, tokens: TokenContract, root: Path) -> dict[str, Any]:
    """What a checkpoint must say so that it can be unpacked.

    Args:
        role: generator or embedder.
        head: whether the network has a language-model head.
        backbone: what training started from.
        adapter: LoRA, QLoRA, another kind, or None.
        tokens: the token contract.
        root: the fit's folder; folders that are named are also noted from there, so that all can be moved together.
    """
    named = [backbone.name, *map(str, backbone.adapters)]
    return {
        "role": role, "head": head, "base": backbone.name, "tokens": tokens.to_json(), "backbone": {**asdict(backbone), "adapters": named[1:]},
        "adapter": None if adapter is None else {"kind": type(adapter).__name__, **(asdict(adapter) if isinstance(adapter, LoRA) else {})},
        "near": {name: os.path.relpath(Path(name).resolve(), root.resolve()) for name in named if Path(name).is_dir()},
    }  # fmt: skip


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The path itself; in place of a checkpoint, a model folder that is there as long as this lasts.

    Raises:
        UsageError: a checkpoint that can't be unpacked; says why.
    """
    from speedlit.checkpoints import is_checkpoint

    if not is_checkpoint(path):
        yield path
        return
    path = path.resolve()
    root = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".unpacked", dir=path.parent))
    except OSError as error:
        raise disk_error(error, path.parent) from error
    try:
        yield unpack(path, root, temporary / f"{root.name}-{path.stem}" / "model")
    finally:
        remove(temporary)


def unpack(path: Path, root: Path, out: Path) -> Path:
    """Write the model folder of a checkpoint.

    Args:
        path: the checkpoint.
        root: the fit's folder.
        out: the model folder.

    Raises:
        UsageError: it doesn't say what it is of, or not all trained weights are in it.
    """
    from speedlit.checkpoints import trained

    said, weights = trained(path)
    if "backbone" not in said:
        raise UsageError(
            f"checkpoint {path} doesn't say of what model it is, because an earlier version wrote it; repeat the `speedlit fit` that did, which goes on "
            "from it and leaves a model folder"
        )
    adapter = dict(said["adapter"] or {})
    if (kind := adapter.pop("kind", None)) not in WHOLE:
        raise UsageError(f"checkpoint {path} is of an adapter of the kind {kind}, which can't be rebuilt from it; let the fit end, and take its model folder")
    near = {name: str(root / place) for name, place in said["near"].items() if (root / place).is_dir()}
    stored = {key: value for key, value in said["backbone"].items() if key in {field.name for field in fields(Backbone)}}
    backbone = Backbone(**{**stored, "name": near.get(stored["name"], stored["name"]), "adapters": [near.get(name, name) for name in stored["adapters"]]})
    model: Any = hollow(backbone.chain()[0], said["head"], backbone)
    if kind:
        model = LoRA(**{key: value for key, value in adapter.items() if key in {field.name for field in fields(LoRA)}}).apply(model)
    tokens = TokenContract.from_json(said["tokens"])
    return save_folder(model, backbone.tokenizer(), out, role=said["role"], backbone=backbone, tokens=tokens, weights=_named(path, model, weights, bool(kind)))


def _named(path: Path, model: Any, found: dict[str, torch.Tensor], adapted: bool) -> dict[str, torch.Tensor]:
    """The weights by the model's names; one that is tied to another stands in the checkpoint once.

    Raises:
        UsageError: some are missing.
    """
    weights = {name.removeprefix("model."): value for name, value in found.items() if name.startswith("model.")}
    needed = {name: weight for name, weight in model.named_parameters(remove_duplicate=False) if weight.requires_grad or not adapted}
    stored = {id(weight): weights[name] for name, weight in needed.items() if name in weights}
    lost = [name for name, weight in needed.items() if id(weight) not in stored]
    if lost:
        raise UsageError(f"checkpoint {path} lacks {len(lost)} of the trained weights, such as {lost[0]}: it is not of the model that it names")
    return {name: stored[id(weight)] for name, weight in needed.items()}
