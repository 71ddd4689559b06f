"""Matrices split over processes (tensor parallelism): each computes some of the attention heads and some of the hidden units of every layer.

The processes of a group see the same samples. Matrices that make heads and hidden units are cut by their rows, those that bring them
back together by their columns, and after each of the latter the group adds up. An adapter is cut as its matrix is: the half that
stands on the cut side, while the other, which has the rank's few rows or columns, is held by all. So are embeddings, norms and head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, SequenceParallel, parallelize_module
from torch.nn.functional import dropout

from speedlit.errors import UsageError
from speedlit.models.sharding import inner, layers
from speedlit.shares import nearest

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
OPENING = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
CLOSING = ("o_proj", "down_proj")
OF_HEADS = ("q_norm", "k_norm")  # one weight for all heads, so that its gradient is added up over the group


def split(model: Any, mesh: Any, processes: int) -> None:
    """Cut a network in place.

    Args:
        model: with or without head or adapter; all processes hold the same weights, or none yet.
        mesh: the processes of this group.
        processes: how many there are in all groups.

    Raises:
        UsageError: a network that can't be cut so; names the nearest size that works.
    """
    network = inner(model)
    refuse(network.config, mesh.size(), processes)
    for layer in layers(network):
        trained = {name: weight.requires_grad for name, weight in layer.named_parameters()}
        for name, part in layer.named_modules():
            if name.rpartition(".")[2] in CLOSING and hasattr(part, "lora_dropout"):
                for adapter, own in part.lora_dropout.items():
                    if isinstance(own, torch.nn.Dropout):
                        part.lora_dropout[adapter] = CutDropout(own.p, mesh.get_local_rank(), mesh.size())
        parallelize_module(layer, mesh, plan(layer), src_data_rank=None)  # nothing is sent: each process cuts its part out of what it holds
        for name, weight in layer.named_parameters():
            weight.requires_grad_(trained[name])


def refuse(config: Any, size: int, processes: int) -> None:
    """A network that can't be cut into ``size`` parts.

    Raises:
        UsageError: what, why, and the nearest that works.
    """
    said = f"trainer.strategy.tensor_parallel_size is {size}"
    if config.model_type not in FAMILIES:
        known = f"{', '.join(FAMILIES[:-1])} and {FAMILIES[-1]}"
        raise UsageError(f"{said}, but only matrices of {known} models are split, and this is {config.model_type}; set it to 1, fsdp alone spreads all models")
    counts = {name: getattr(config, name) for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size")}
    if wrong := [f"{name} ({count})" for name, count in counts.items() if count % size]:
        raise UsageError(f"{said}, by which the model's {wrong[0]} can't be divided; the nearest that works is {nearest(size, processes, *counts.values())}")


def plan(layer: Any) -> dict[str, ParallelStyle]:
    """How each part of a layer is cut, by its name."""
    found: dict[str, ParallelStyle] = {}
    for name, part in layer.named_modules():
        last = name.rpartition(".")[2]
        if last in OF_HEADS:
            found[name] = SequenceParallel(sequence_dim=2, use_local_output=True)
        elif last in (*OPENING, *CLOSING):
            style, cut = (ColwiseParallel, "lora_B") if last in OPENING else (RowwiseParallel, "lora_A")
            found[f"{name}.base_layer" if hasattr(part, "base_layer") else name] = style()
            found |= {f"{name}.{cut}.{adapter}": style() for adapter in getattr(part, cut, ())}
    return found


class CutDropout(torch.nn.Module):
    """Dropout where each process holds some of the features: it draws for all of them, so that no two parts are left out alike, and as one process would.

    Args:
        p: the share that is left out.
        number: of the part that this process holds.
        parts: how many there are.
    """

    def __init__(self, p: float, number: int, parts: int) -> None:
        super().__init__()
        self.p, self.number, self.parts = p, number, parts

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Of this process's part."""
        if not self.training:
            return features
        factors = dropout(features.new_ones(*features.shape[:-1], self.parts * features.shape[-1]), self.p)
        return features * factors.chunk(self.parts, -1)[self.number]
