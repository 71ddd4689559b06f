"""Finished model folders: what a training stage leaves behind, and what everything after it loads.

A folder holds either an adapter (adapter_config.json, adapter_model.safetensors) or full weights (config.json,
model.safetensors), and always the tokenizer and ``speedlit.json``: role, base, adapters merged before, attention, token contract.
Places of other folders are stored relative to the folder, so that a run can be moved.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from speedlit import __version__
from speedlit.data.tokens import TokenContract
from speedlit.errors import UsageError
from speedlit.files import disk_error, fsync_dir, read_json, remove, write_json
from speedlit.models.adapter import TRAINED
from speedlit.models.backbone import CARD, Backbone, hidden_states, load_config, load_tokenizer, resolve
from speedlit.models.pooling import embed

SCHEMA = 1


@dataclass
class Loaded:
    """A model ready for use, in eval mode.

    Attributes:
        model: a causal language model (role generator) or a network without head (role embedder).
        tokenizer: its tokenizer, with a padding token.
        tokens: the token contract it was trained with.
        attention: causal or bidirectional.
        info: the content of speedlit.json; empty for a plain Hugging Face folder.
    """

    model: Any
    tokenizer: Any
    tokens: TokenContract
    attention: str
    info: dict[str, Any]

    def embed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Vectors (B, D), pooled and normalised as the contract says, of ids and mask (B, T)."""
        return embed(hidden_states(self.model, ids, mask), mask, self.tokens.pooling, self.tokens.normalize)


def load_folder(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    merge: bool = True,
    role: str | None = None,
    attention: str | None = None,
    tokens: TokenContract | None = None,
) -> Loaded:
    """Load a finished folder, a plain Hugging Face folder, a hub id or ``speedlit:base``.

    Args:
        path: where.
        dtype: of the weights.
        merge: merge the last adapter too; False leaves it as a peft adapter on top (earlier ones are always merged).
        role: generator or embedder; default: what the folder says, else by its config's architecture.
        attention: in place of what the folder says.
        tokens: in place of what the folder says.

    Raises:
        UsageError: nothing usable there; says what is missing.
    """
    place = resolve(str(path))
    info = card(place)
    tokens = tokens or (TokenContract.from_json(info["tokens"]) if info else TokenContract())
    backbone = Backbone(str(place), attention=attention or info.get("attention") or "causal", dtype=str(dtype).removeprefix("torch."))
    start, adapters = backbone.chain()
    config = load_config(start, backbone)
    if not info and attention is None and not hasattr(config, "num_key_value_heads"):
        backbone.attention = "bidirectional" if config.model_type in ENCODERS else "causal"
    head = (role or info.get("role") or _role(config)) == "generator"
    if merge or not adapters:
        model = backbone.build(head)
    else:
        from peft import PeftModel

        earlier = Backbone(start, [str(a) for a in adapters[:-1]], backbone.attention, backbone.dtype)
        model = PeftModel.from_pretrained(earlier.build(head), str(adapters[-1]))
    return Loaded(model.eval(), load_tokenizer(place), tokens, backbone.attention, info)


ENCODERS = ("bert", "distilbert", "roberta", "xlm-roberta", "modernbert", "mpnet", "electra", "albert", "deberta-v2", "nomic_bert")


def card(place: str) -> dict[str, Any]:
    """``speedlit.json`` of a folder, or an empty dict where there is none.

    Raises:
        UsageError: written by a later version.
    """
    path = Path(place) / CARD
    if not path.is_file():
        return {}
    found = read_json(path)
    if found.get("schema") != SCHEMA:
        raise UsageError(f"{path} has schema {found.get('schema')}; this version of speedlit reads {SCHEMA}: update speedlit, or train again")
    return dict(found)


def _role(config: Any) -> str:
    architecture = (getattr(config, "architectures", None) or [""])[0]
    return "generator" if architecture.endswith(("ForCausalLM", "LMHeadModel")) else "embedder"


def save_folder(
    model: Any, tokenizer: Any, out: Path, *, role: str, backbone: Backbone, tokens: TokenContract, weights: dict[str, torch.Tensor] | None = None
) -> Path:
    """Write a finished model folder, all or nothing: the folder appears under its name only when it is complete.

    Args:
        model: a peft model (its adapter is saved) or a network trained in full.
        tokenizer: saved beside it.
        out: the folder; replaced if it exists.
        role: generator or embedder.
        backbone: what the model started from.
        tokens: the contract to load it with.
        weights: what to save, by name, where the model itself holds only a share; null: the model's own.
    """
    for stale in out.parent.glob(f".{out.name}.*.tmp"):  # of an interrupted attempt
        remove(stale)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    is_adapter = hasattr(model, "peft_config")
    base, adapters = backbone.chain()
    if backbone.name.startswith(("speedlit:", "package:")) and base == resolve(backbone.name):
        base = backbone.name  # found again wherever the package is installed
    base = _portable(base, out)
    try:
        _save_weights(model, temporary, base, weights)
        tokenizer.save_pretrained(temporary)
    except (OSError, SafetensorError) as error:
        remove(temporary)
        reason = error if isinstance(error, OSError) else OSError(errno.ENOSPC if "os error 28" in str(error) else errno.EIO, str(error))
        raise disk_error(reason, out) from error
    info = {
        "schema": SCHEMA, "role": role, "base": base, "attention": backbone.attention, "tokens": tokens.to_json(), "code": __version__,
        "adapters": [_portable(str(a), out) for a in adapters] if is_adapter else [],
    }  # fmt: skip
    write_json(temporary / CARD, info)
    for path in temporary.iterdir():  # safetensors makes its files private, whatever the umask says
        path.chmod((temporary / CARD).stat().st_mode)
    remove(out)
    temporary.rename(out)
    fsync_dir(out.parent)
    return out


def save_untrained(finished: Path, out: Path) -> Path:
    """A folder without weights of its own: the base of ``finished`` read through the same token contract and attention.

    Args:
        finished: a model folder that ``save_folder`` has written.
        out: the folder; replaced if it exists.
    """
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    remove(temporary)
    weights = ("*.safetensors", "*.bin", "adapter_config.json", "config.json", "generation_config.json")
    shutil.copytree(finished, temporary, ignore=shutil.ignore_patterns(*weights))
    info = read_json(finished / CARD)
    near = (finished / info["base"]).resolve()
    write_json(temporary / CARD, {**info, "adapters": [], "base": _portable(str(near), out) if near.is_dir() else info["base"]})
    remove(out)
    temporary.rename(out)
    fsync_dir(out.parent)
    return out


def _save_weights(model: Any, folder: Path, base: str, weights: dict[str, torch.Tensor] | None) -> None:
    """Weights without any place of this machine in the JSON beside them."""
    if hasattr(model, "peft_config"):
        model.save_pretrained(folder, save_embedding_layers=False, selected_adapters=[TRAINED], state_dict=weights)
    else:
        model.save_pretrained(folder, state_dict=weights)
    remove(folder / "README.md")
    if (folder / "adapter_config.json").is_file():
        config = read_json(folder / "adapter_config.json")
        config = {key: sorted(value) if key == "target_modules" and isinstance(value, list) else value for key, value in config.items()}  # of a set
        write_json(folder / "adapter_config.json", {**config, "base_model_name_or_path": base})
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        write_json(folder / "config.json", {key: value for key, value in config.items() if key != "_name_or_path"})


def _portable(name: str, out: Path) -> str:
    """A folder's place relative to ``out``; other names as they are."""
    return os.path.relpath(Path(name).resolve(), out.resolve()) if Path(name).is_dir() else name
