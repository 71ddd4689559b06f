"""Several trained models of one shape become one: the mean of their weights, or a point on the arc between two of them.

What is combined is the full weights, after each adapter was merged into its base. For adapters of one base this is the
mean of what they add; the mean of their A and of their B matrices would be another model, because an update is the product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speedlit.errors import UsageError
from speedlit.files import read_json, write_json

if TYPE_CHECKING:
    import torch

    from speedlit.models.folder import Loaded

METHODS = ("average", "slerp")


def merge(sources: Sequence[Path], target: Path, method: str = "average", weights: Sequence[float] | None = None) -> dict[str, Any]:
    """Write a model folder with full weights.

    Args:
        sources: two or more model folders (slerp: exactly two), folders of fits or checkpoints, of one architecture, vocabulary, role, attention and
            token contract.
        target: a folder that does not exist yet or is empty.
        method: ``average``: the weighted mean of each tensor; ``slerp``: spherical interpolation of each tensor.
        weights: the share of each source; they are made to sum to 1. Default: all the same.

    Returns:
        What ``speedlit.json`` keeps as ``merged``: method, weights, and name and hash of each source.

    Raises:
        UsageError: too few or too many sources, weights that don't fit, a target in use, or models that are not of one kind.
    """
    from speedlit.export import free_target, model_folder
    from speedlit.models.unpack import unpacked

    shares = _shares(method, len(sources), weights)
    free_target(target)
    with ExitStack() as stack:
        return _merge([model_folder(stack.enter_context(unpacked(Path(source)))) for source in sources], target, method, shares)


def _merge(folders: list[Path], target: Path, method: str, shares: list[float]) -> dict[str, Any]:
    from speedlit.evaluation.folders import folder_hash
    from speedlit.models.backbone import CARD, Backbone
    from speedlit.models.folder import load_folder, save_folder

    first = load_folder(folders[0])
    mixed = {name: tensor.detach().clone() for name, tensor in first.model.state_dict().items()}
    total = shares[0]
    for folder, share in zip(folders[1:], shares[1:], strict=True):
        other = load_folder(folder)
        _same_kind(first, other, folders[0], folder)
        total += share
        _mix(mixed, other.model.state_dict(), share / total, method)
    first.model.load_state_dict(mixed)
    backbone = Backbone(_base(folders[0], first.info["base"]), attention=first.attention)
    save_folder(first.model, first.tokenizer, target, role=first.info["role"], backbone=backbone, tokens=first.tokens)
    names = [folder.parent.name if folder.name == "model" else folder.name for folder in folders]
    merged = {"method": method, "weights": shares, "sources": [{"name": n, "hash": folder_hash(f)} for n, f in zip(names, folders, strict=True)]}
    write_json(target / CARD, {**read_json(target / CARD), "merged": merged})
    return merged


def _base(folder: Path, name: str) -> str:
    """The base that a folder names; the folder itself where full weights have outlived the folder of their base."""
    near = folder / name
    return str(near.resolve()) if near.is_dir() else str(folder) if name.startswith(".") else name


def _shares(method: str, count: int, weights: Sequence[float] | None) -> list[float]:
    if method not in METHODS:
        raise UsageError(f"unknown method {method!r}: use {' or '.join(METHODS)}")
    if count < 2 or (method == "slerp" and count != 2):
        raise UsageError(f"{method} takes {'exactly two models' if method == 'slerp' else 'two models or more'}, and {count} were named")
    given = list(weights) if weights is not None else [1.0] * count
    if len(given) != count:
        raise UsageError(f"--weights holds {len(given)} numbers for {count} models: give one for each")
    if not all(math.isfinite(w) and w >= 0 for w in given) or sum(given) <= 0 or given[0] <= 0:
        raise UsageError(f"--weights {','.join(map(str, given))}: shares must be 0 or more, and that of the first model more than 0")
    return [w / sum(given) for w in given]


def _same_kind(first: Loaded, other: Loaded, one: Path, two: Path) -> None:
    """Refuse models whose weights don't stand for the same things.

    Raises:
        UsageError: says in what they differ.
    """
    for what, mine, theirs in (
        ("role", first.info["role"], other.info["role"]),
        ("attention", first.attention, other.attention),
        ("token contract", first.tokens.to_json(), other.tokens.to_json()),
    ):
        if mine != theirs:
            raise UsageError(f"{one} and {two} differ in their {what} ({_difference(mine, theirs)}): only models of one kind can be merged")
    if first.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise UsageError(f"{one} and {two} have different vocabularies: only models of one kind can be merged")
    mine, theirs = ({name: tuple(t.shape) for name, t in loaded.model.state_dict().items()} for loaded in (first, other))
    if mine != theirs:
        name = min(key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key))
        raise UsageError(f"{one} and {two} are not of one architecture ({name}: {mine.get(name)} and {theirs.get(name)}): they can't be merged")


def _difference(mine: Any, theirs: Any) -> str:
    if isinstance(mine, dict):
        key = next(key for key in mine if mine[key] != theirs[key])
        return f"{key}: {mine[key]!r} and {theirs[key]!r}"
    return f"{mine} and {theirs}"


def _mix(into: dict[str, torch.Tensor], other: dict[str, torch.Tensor], share: float, method: str) -> None:
    """Move every weight of ``into`` towards ``other`` by ``share``, in place; whole numbers stay as they are."""
    for name, tensor in into.items():
        if not tensor.is_floating_point():
            continue
        if method == "slerp":
            tensor.copy_(slerp(tensor, other[name], share))
        else:
            tensor.lerp_(other[name], share)


def slerp(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    """The point at ``share`` of the arc from ``a`` to ``b``; where they point the same or the opposite way, of the line."""
    one, two = a.double(), b.double()
    size = float(one.norm() * two.norm())
    cosine = float((one * two).sum()) / size if size else 1.0
    angle = math.acos(min(max(cosine, -1.0), 1.0))
    if math.sin(angle) < 1e-6:
        return one.lerp(two, share).to(a.dtype)
    return ((math.sin((1 - share) * angle) * one + math.sin(share * angle) * two) / math.sin(angle)).to(a.dtype)
