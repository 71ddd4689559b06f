"""Adapters: LoRA, and QLoRA (the same over a base in 4 bits)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from speedlit.errors import UsageError


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

        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
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
    """The ``lora_B`` weights by name: zero before the first step."""
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_B." in name}
