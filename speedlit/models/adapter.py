"""Adapters: LoRA, and QLoRA (the same over a base in 4 bits)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from speedlit.errors import UsageError
from speedlit.files import read_json

TRAINED, FROZEN = "default", "frozen_"  # names of adapters: the one that is trained, the beginning of those that are kept


@dataclass
class LoRA:
    """Low-rank updates beside frozen weights.

    Args:
        r: rank.
        alpha: scale; the update counts alpha / r.
        dropout: on the update's input.
        targets: names of linear layers (their last part, such as q_proj), or ``all-linear``.
        train_embeddings: also train the input embeddings in full.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: list[str] | str = "all-linear"
    train_embeddings: bool = False

    def quantization(self) -> Any:
        """The quantization config of the base: none."""
        return None

    def apply(self, model: Any) -> Any:
        """Freeze ``model`` and put the updates into it.

        Raises:
            UsageError: a target name that matches no layer; lists those that exist.
        """
        from peft import LoraConfig, get_peft_model

        causal = getattr(model, "lm_head", None) is not None
        names = embedding_names(model) if self.train_embeddings else None
        config = LoraConfig(
            r=self.r, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=checked_targets(model, self.targets),
            task_type="CAUSAL_LM" if causal else "FEATURE_EXTRACTION", modules_to_save=names,
        )  # fmt: skip
        for layer in model.modules():  # on some CPUs an eval forward repacks 4-bit weights, after which they can't be trained, saved or sharded
            if hasattr(layer, "support_avx512bf16_for_cpu"):
                layer.support_avx512bf16_for_cpu = False
        return get_peft_model(model, config, autocast_adapter_dtype=not isinstance(self, QLoRA))


@dataclass
class QLoRA(LoRA):
    """LoRA over a base in 4-bit NF4 with double quantization (bitsandbytes; also on the CPU).

    Args:
        storage: dtype that holds the packed weights; bfloat16 lets them be sharded.
        compute: dtype of the matrix products.
    """

    storage: str = "bfloat16"
    compute: str = "bfloat16"

    def quantization(self) -> Any:
        """NF4, double quantization."""
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, self.compute), bnb_4bit_quant_storage=getattr(torch, self.storage),
        )  # fmt: skip


def linear_names(model: Any) -> list[str]:
    """Last parts of the names of all linear layers but the output head, 4-bit layers included."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    found = {name.rpartition(".")[2] for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear) and layer is not head}
    return sorted(found)


def checked_targets(model: Any, targets: list[str] | str) -> list[str]:
    """Layer names to adapt; peft itself passes over names that match nothing as long as one matches.

    Raises:
        UsageError: a name matches nothing.
    """
    real = linear_names(model)
    if targets == "all-linear":
        return real
    asked = [targets] if isinstance(targets, str) else list(targets)
    modules = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    wrong = [name for name in asked if not any(m == name or m.endswith(f".{name}") for m in modules)]
    if wrong or not asked:
        raise UsageError(f"adapter.targets: no linear layer is called {', '.join(wrong) or '(nothing asked)'}; this model has {', '.join(real)}")
    return asked


def embedding_names(model: Any) -> list[str]:
    """Last part of the name of the input embeddings."""
    table = model.get_input_embeddings()
    return [next(name for name, layer in model.named_modules() if layer is table).rpartition(".")[2]]


def adapter_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """The trained ``lora_B`` weights by name: zero before the first step."""
    return {name: parameter for name, parameter in model.named_parameters() if f".lora_B.{TRAINED}." in name}


def keep_frozen(model: Any, folders: Sequence[Path]) -> None:
    """Put finished adapters under the one that is trained: they work, don't change, and have no dropout, as if they were merged.

    Args:
        model: with the adapter to train.
        folders: the finished ones, oldest first.

    Raises:
        UsageError: one that doesn't fit the model, or holds more than low-rank updates.
    """
    for number, folder in enumerate(folders):
        if read_json(folder / "adapter_config.json").get("modules_to_save"):
            raise UsageError(f"the adapter in {folder} holds whole layers, which can't be kept beside others; set reference to null, so that it is merged")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="Found missing adapter keys")
                model.load_adapter(str(folder), f"{FROZEN}{number}", is_trainable=False, autocast_adapter_dtype=False)
        except (RuntimeError, ValueError, KeyError, OSError, UserWarning) as error:
            raise UsageError(f"the adapter in {folder} doesn't fit the base model: {str(error).splitlines()[0][:200]}") from error
    dtype = next(iter(adapter_parameters(model).values())).dtype
    for layer in _adapted(model):
        for name in frozen_names(layer):
            layer.lora_dropout[name] = torch.nn.Identity()
            layer.lora_A[name].to(dtype), layer.lora_B[name].to(dtype)
    _activate(model, trained=True)


@contextmanager
def only_frozen(model: Any) -> Iterator[None]:
    """The model as it was before training: the adapter that is trained is off, those kept frozen are on."""
    _activate(model, trained=False)
    try:
        yield
    finally:
        _activate(model, trained=True)


def frozen_names(layer: Any) -> list[str]:
    """Adapters of a layer that ``keep_frozen`` has put there."""
    return [name for name in layer.lora_A if name.startswith(FROZEN)]


def _adapted(model: Any) -> list[Any]:
    return [layer for layer in model.modules() if hasattr(layer, "lora_A") and hasattr(layer, "set_adapter")]


def _activate(model: Any, trained: bool) -> None:
    for layer in _adapted(model):
        names = frozen_names(layer)
        layer.set_adapter([*names, *([TRAINED] if trained and TRAINED in layer.lora_A else [])])
        for name, part in [*layer.lora_A.items(), *layer.lora_B.items()]:  # peft lets whatever is active be trained
            part.requires_grad_(name == TRAINED)
