"""Attention masks of rows that hold several sequences, and the look whether a model obeys them.

The mask is additive and in floats: boolean masks are wrong with eager attention, positions alone with bidirectional attention.
"""

from __future__ import annotations

from typing import Any

import torch

from speedlit.errors import SpeedlitError
from speedlit.models import attention
from speedlit.models.backbone import hidden_states

OFF = "; set data.pack and data.share_prefix to false"
OBEYING = ("sdpa", "eager", attention.NAME)  # attention implementations that take a dense mask
Mask = torch.Tensor | dict[str, torch.Tensor]


def is_causal(model: Any) -> bool:
    """Which attention the model was loaded with."""
    return getattr(model.config, "is_causal", None) is not False


def sees(groups: torch.Tensor, branches: torch.Tensor, positions: torch.Tensor, causal: bool, window: int | None = None) -> torch.Tensor:
    """Which token (B, T, 1) sees which (B, 1, T): its own piece and its group's trunk, up to itself where attention is causal.

    Args:
        groups: (B, T); -1 for padding, which sees padding.
        branches: (B, T); 0 is the trunk.
        positions: (B, T).
        causal: nothing that comes later.
        window: nothing that lies so many positions back.
    """
    found = groups[:, :, None] == groups[:, None, :]
    found &= (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
    if causal:
        found &= torch.ones(groups.shape[1], groups.shape[1], dtype=torch.bool, device=groups.device).tril()
    if window is not None:
        found &= positions[:, :, None] - positions[:, None, :] < window
    return found


def packed_mask(model: Any, groups: torch.Tensor, branches: torch.Tensor, positions: torch.Tensor) -> Mask:
    """The additive mask (B, 1, T, T) for the model's forward; one per kind of layer where they differ.

    Raises:
        SpeedlitError: the model has layers that no mask keeps apart.
    """
    kinds = set(getattr(model.config, "layer_types", None) or ())
    window = getattr(model.config, "sliding_window", None) if getattr(model.config, "use_sliding_window", True) else None
    strange = kinds - {"full_attention", "sliding_attention"}
    if strange:
        names = ", ".join(sorted(strange))
        raise SpeedlitError(f"a {model.config.model_type} model has {names} layers, in which the sequences of a row would see each other{OFF}")
    dtype = model.get_input_embeddings().weight.dtype
    dtype = dtype if dtype.is_floating_point else torch.float32
    windows = {"full_attention": None, "sliding_attention": window}
    made = {
        kind: _additive(sees(groups, branches, positions, is_causal(model), windows[kind]), dtype)
        for kind in (kinds or {"sliding_attention"})  # a model without kinds has its window everywhere, or none
    }
    return made if len(made) > 1 else next(iter(made.values()))


def _additive(found: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(found.shape, dtype=dtype, device=found.device).masked_fill(~found, torch.finfo(dtype).min)[:, None]


@torch.no_grad()
def probe_packing(model: Any) -> None:
    """Look whether two packed sequences give what they give alone, and whether either notices a change in the other.

    Raises:
        SpeedlitError: the model does not obey the mask.
    """
    kind, how = model.config.model_type, model.config._attn_implementation
    if how not in OBEYING:
        raise SpeedlitError(f"{how} attention takes no dense mask, which rows of several sequences need; set attn_implementation to sdpa{OFF}")
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    ids = ((torch.arange(13, device=device) * 7 + 11) % model.config.vocab_size)[None]
    groups = torch.tensor([[0] * 6 + [1] * 7], device=device)
    positions = torch.tensor([[*range(6), *range(7)]], device=device)
    mask = packed_mask(model, groups, torch.zeros_like(groups), positions)
    try:
        found = hidden_states(model, ids, mask, positions).float()
        for own, other in ((slice(0, 6), slice(6, 13)), (slice(6, 13), slice(0, 6))):
            changed = ids.clone()
            changed[:, other] = (changed[:, other] + 1) % model.config.vocab_size
            again = hidden_states(model, changed, mask, positions).float()[:, own]
            alone = hidden_states(model, ids[:, own], torch.ones_like(ids[:, own])).float()
            scale = float(alone.abs().max())
            if not torch.allclose(found[:, own], again, atol=1e-6 * scale) or not torch.allclose(found[:, own], alone, atol=5e-2 * scale, rtol=0):
                raise SpeedlitError(f"in a {kind} model with {how} attention the sequences of a row see each other{OFF}")
    finally:
        model.train(training)
