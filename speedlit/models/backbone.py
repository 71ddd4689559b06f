"""Backbones: any Hugging Face decoder or encoder, with the attention that was asked for, and finished stages merged in.

A backbone's name is a hub id, a folder, ``speedlit:base`` (the packaged demo model) or a finished model folder of ours.
Finished adapters are merged into the weights before anything else happens, so that the base of a stage *is* the stage before.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from speedlit.errors import SpeedlitError, UsageError
from speedlit.files import read_json
from speedlit.models.quiet import quiet
from speedlit.models.sharding import inside

PACKAGED = Path(__file__).resolve().parent.parent / "offline" / "base"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "tokenizer_config.json")
CARD = "speedlit.json"
OPTIONAL_KEYS = ("pooler", "position_ids")  # weights that an embedder doesn't read


@dataclass
class Backbone:
    """Which network, and how it attends.

    Args:
        name: hub id, folder, ``speedlit:base``, or ``package:NAME/SUBFOLDER`` for a model inside an installed Python package.
        adapters: finished model folders, merged into the base in this order before training.
        attention: causal, or bidirectional (embedders). Checked on the running model, not believed.
        dtype: of the weights: float32, bfloat16 or float16.
        attn_implementation: sdpa, eager, or another that transformers knows.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        revision: of a hub id.
        fast: in mixed precision, fewer and cheaper operations for the same sums (``models/fast.py``), on layers that are recognised.
    """

    name: str
    adapters: list[str] = field(default_factory=list)
    attention: str = "causal"
    dtype: str = "float32"
    attn_implementation: str = "sdpa"
    gradient_checkpointing: bool = False
    revision: str | None = None
    fast: bool = True

    def __post_init__(self) -> None:
        if self.attention not in ("causal", "bidirectional"):
            raise UsageError(f"backbone.attention is {self.attention!r}; choose causal or bidirectional")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise UsageError(f"backbone.dtype is {self.dtype!r}; choose float32, bfloat16 or float16")

    def chain(self) -> tuple[str, list[Path]]:
        """The place of the full weights and the adapters to merge into them, oldest first."""
        return chain(self.name, self.adapters)

    def tokenizer(self) -> Any:
        """The tokenizer of the last finished stage, else of the base."""
        return load_tokenizer(resolve(self.adapters[-1] if self.adapters else self.name), self.revision)

    def build(self, head: bool, quantization: Any = None, merge: bool = True) -> Any:
        """The network with everything merged.

        Args:
            head: a causal language model (generators), else the network without head (embedders).
            quantization: a transformers quantization config, or None.
            merge: False leaves finished adapters out, for who keeps them beside the weights.

        Raises:
            UsageError: nothing there to load, or adapters are to be merged into a quantized base.
        """
        place, adapters = self.chain()
        adapters = adapters if merge else []
        if quantization is not None and adapters:
            raise UsageError("backbone.adapters can't be merged into a quantized base: save them merged first (`speedlit export --format merged`), or use LoRA")
        headed = head or any(made_with_head(adapter) for adapter in adapters)
        model = load_weights(place, headed, self, quantization)
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # we pool ourselves, and weights without a gradient upset adapters and ddp
        for adapter in adapters:
            if headed and not head and not made_with_head(adapter):
                model, headed = model.base_model, False  # an embedder's adapter names the layers of the network without head
            model = merge_adapter(model, adapter)
        if headed and not head:
            model = model.base_model
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model


def resolve(name: str) -> str:
    """Where a model lies: a folder's path, or the hub id as it is.

    Raises:
        UsageError: a path that isn't there.
    """
    if name == "speedlit:base":
        if not (PACKAGED / "config.json").is_file():
            raise UsageError("speedlit:base: the packaged base model is missing; train it with `python scripts/build_base.py --out speedlit/offline/base`")
        return str(PACKAGED)
    if name.startswith("speedlit:"):
        raise UsageError(f"{name}: the only packaged model is speedlit:base")
    if name.startswith("package:"):
        return _in_package(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists():
        raise UsageError(f"model {name} is a file; name the folder that holds config.json")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise UsageError(f"model {name}: no such folder")
    return name


def _in_package(name: str) -> str:
    """``package:NAME/SUBFOLDER``: a model that an installed Python package carries.

    Raises:
        UsageError: the package is not installed, or has no such folder.
    """
    from importlib.util import find_spec

    package, _, sub = name.removeprefix("package:").partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"model {name}: the Python package {package!r} is not installed; `pip install` it (names on the index often have - for _)")
    folder = Path(next(iter(spec.submodule_search_locations))) / sub
    if not (folder / "config.json").is_file():
        raise UsageError(f"model {name}: the package {package} has no model folder {sub or '(its own)'}; give package:NAME/SUBFOLDER with a config.json in it")
    return str(folder)


def chain(name: str, adapters: list[str] | None = None) -> tuple[str, list[Path]]:
    """Follow finished model folders back to full weights.

    Returns:
        The folder or hub id of the full weights, and the adapter folders to merge, oldest first, none twice.
    """
    merged: list[Path] = []
    base = resolve(name)
    for place in [base, *(resolve(str(a)) for a in adapters or [])]:
        folder = Path(place)
        if not (folder / "adapter_config.json").is_file():
            base, merged = place, []  # full weights replace all that was before
            if (folder / CARD).is_file() and not (folder / "config.json").is_file():  # only says how to read its base
                base, merged = chain(str(_beside(folder, read_json(folder / CARD)["base"])))
            continue
        try:
            start, before = _stands_on(folder)
        except UsageError as error:
            raise UsageError(f"the adapter in {folder} has no base to stand on: {error}; put it there, or name another in its json files") from error
        if place == base:
            base = start
        merged += [a for a in [*before, folder] if a.resolve() not in {m.resolve() for m in merged}]
    return base, merged


def _stands_on(adapter: Path) -> tuple[str, list[Path]]:
    """The full weights and the older adapters that a folder with an adapter names as its base."""
    if not (adapter / CARD).is_file():
        return resolve(str(_beside(adapter, read_json(adapter / "adapter_config.json")["base_model_name_or_path"]))), []
    card = read_json(adapter / CARD)
    return chain(str(_beside(adapter, card["base"])), [str(_beside(adapter, older)) for older in card.get("adapters", [])])


def _beside(folder: Path, name: str) -> str | Path:
    """A name stored in a model folder: relative to it if such a folder exists."""
    near = folder / name
    return Path(os.path.normpath(near.resolve() if near.is_symlink() else near)) if near.is_dir() else name


def load_tokenizer(place: str, revision: str | None = None) -> Any:
    """The tokenizer of a folder or hub id.

    Raises:
        UsageError: there is none.
    """
    from transformers import AutoTokenizer

    quiet()
    if Path(place).is_dir() and not any((Path(place) / name).is_file() for name in TOKENIZERS):
        raise UsageError(f"model folder {place} has no tokenizer (tokenizer.json); copy the base model's tokenizer files into it")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision)
    except (OSError, ValueError, ImportError) as error:
        raise _cannot_load(place, "tokenizer", error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token
    return tokenizer


def check_weights(place: str) -> None:
    """Look whether a model folder holds weights at all; a hub id is not looked at.

    Raises:
        UsageError: it holds none.
    """
    folder = Path(place)
    if folder.is_dir() and not any((folder / name).is_file() for name in WEIGHTS):
        instead = "; it is an ONNX export, for onnxruntime: name the folder that was exported" if (folder / "model.onnx").is_file() else ""
        raise UsageError(f"model folder {place} has no weights: none of {', '.join(WEIGHTS[:2])} is in it{instead}")


def load_weights(place: str, head: bool, backbone: Backbone, quantization: Any = None) -> Any:
    """The network at ``place`` with the attention that ``backbone`` asks for, in eval mode.

    Raises:
        UsageError: no config, no weights, damaged or missing weights.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoModelForCausalLM

    quiet()
    config = load_config(place, backbone)
    check_weights(place)
    kind: Any = AutoModelForCausalLM if head else AutoModel
    extra = {"quantization_config": quantization} if quantization is not None else {}
    try:
        model, info = kind.from_pretrained(
            place, config=config, dtype=getattr(torch, backbone.dtype), attn_implementation=backbone.attn_implementation,
            revision=backbone.revision, output_loading_info=True, **extra,
        )  # fmt: skip
    except SafetensorError as error:
        raise UsageError(f"the weights in {place} are damaged ({error}); copy or train the model again") from error
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise _cannot_load(place, "model", error) from error
    missing = [key for key in info["missing_keys"] if not any(part in key for part in OPTIONAL_KEYS)]
    if missing or info.get("mismatched_keys"):
        raise UsageError(f"the weights in {place} don't fit its config: {len(missing)} are missing, such as {next(iter(missing), '(wrong shapes)')}")
    return model.eval()


def load_config(place: str, backbone: Backbone) -> Any:
    """The config with the attention switch set where transformers reads it."""
    from transformers import AutoConfig

    folder = Path(place)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UsageError(f"model folder {place} has no config.json; name a folder that save_pretrained or `speedlit fit` has written")
    try:
        config = AutoConfig.from_pretrained(place, revision=backbone.revision)
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load(place, "config", error) from error
    config.use_cache = False  # with a cache, packed rows see each other
    if backbone.attention == "bidirectional":
        config.is_causal = False
        if getattr(config, "sliding_window", None) is not None:
            config.sliding_window = None
            if getattr(config, "layer_types", None):
                config.layer_types = ["full_attention"] * len(config.layer_types)
    elif getattr(config, "is_causal", None) is False:
        config.is_causal = True
    return config


def _cannot_load(place: str, what: str, error: Exception) -> UsageError:
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    if Path(place).is_dir():
        return UsageError(f"cannot load the {what} of {place}: {reason}")
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    why = "the hub is switched off (HF_HUB_OFFLINE=1) and it is not in the local cache" if offline else reason
    return UsageError(f"model {place}: there is no such folder, and as a hub id its {what} can't be had: {why}")


def made_with_head(adapter: Path) -> bool:
    """Whether an adapter was trained on a causal language model; its layer names differ from those of an embedder's."""
    return bool(read_json(adapter / "adapter_config.json").get("task_type") == "CAUSAL_LM")


def merge_adapter(model: Any, folder: Path) -> Any:
    """Merge a finished adapter into ``model``.

    Raises:
        UsageError: the adapter doesn't belong to this model.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")  # peft would go on without the adapter
            merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError, UserWarning) as error:
        raise UsageError(f"the adapter in {folder} doesn't fit the base model: {str(error).splitlines()[0][:200]}") from error
    for leftover in ("peft_config", "_hf_peft_config_loaded"):
        if leftover in merged.__dict__:
            delattr(merged, leftover)
    return merged


def hidden_states(
    model: Any, ids: torch.Tensor, mask: Any, positions: torch.Tensor | None = None, wanted: tuple[torch.Tensor, torch.Tensor] | None = None
) -> torch.Tensor:
    """Last hidden states (B, T, D), through the network's own forward, which is where the attention switch works.

    Args:
        model: with or without head or adapter.
        ids: (B, T).
        mask: (B, T), None, or what ``packed_mask`` makes.
        positions: (B, T); None: each row counts from 0.
        wanted: row and place of those that are read later; the others may be left out of the last layer. None: all.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if getattr(inner, "lm_head", None) is not None:
        inner = inner.get_decoder()
    places: dict[str, Any] = {} if positions is None else {"position_ids": positions}
    if getattr(inner, "trims", False):  # see models/fast.py
        places["wanted"] = wanted
        causal = getattr(inner.config, "is_causal", None) is not False
        if causal and isinstance(mask, torch.Tensor) and mask.ndim == 2 and mask.device.type == "cpu" and padded_right(mask):
            mask = None  # nothing real comes after the padding
    hidden: torch.Tensor = inside(model, lambda: inner(input_ids=ids, attention_mask=mask, **places).last_hidden_state)  # config.use_cache is False
    return hidden


def padded_right(mask: torch.Tensor) -> bool:
    """Whether no row of a mask (B, T) begins with padding or has some inside."""
    return bool((mask[:, 1:] <= mask[:, :-1]).all())


@torch.no_grad()
def probe_attention(model: Any, attention: str) -> None:
    """Look whether the running model attends as it was asked to, with and without padding.

    The last token of a row is changed: position 1 must notice in a bidirectional model and must not in a causal one.

    Raises:
        SpeedlitError: it does not.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    vocabulary = model.config.vocab_size
    ids = (torch.arange(16, device=device).view(2, 8) * 7 + 11) % vocabulary
    try:
        for real in (8, 6):  # without padding, and with two places of padding in the second row
            mask = torch.ones_like(ids)
            mask[1, real:] = 0
            other = ids.clone()
            other[0, 7], other[1, real - 1] = (ids[0, 7] + 1) % vocabulary, (ids[1, real - 1] + 1) % vocabulary
            one, two = hidden_states(model, ids, mask)[:, 1].float(), hidden_states(model, other, mask)[:, 1].float()
            noticed = ((one - two).abs().amax(-1) > 1e-6 * one.abs().amax(-1)).tolist()
            if noticed != [attention == "bidirectional"] * 2:
                found, where = "sees" if any(noticed) else "doesn't see", " where rows are padded" if real < 8 else ""
                raise SpeedlitError(
                    f"backbone.attention is {attention}, but in this {model.config.model_type} model a token {found} those after it{where}; "
                    "choose the other attention, or another attn_implementation"
                )
    finally:
        model.train(training)
