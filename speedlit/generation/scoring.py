"""How likely a trained generator finds given answers: the sum of the log-probs of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from speedlit.data.collate import pad
from speedlit.labels import IGNORE
from speedlit.losses.logprobs import row_sums, token_logps
from speedlit.models.backbone import hidden_states
from speedlit.models.folder import load_folder


@torch.no_grad()
def sequence_logps(folder: Path | str, prompts: Sequence[str], answers: Sequence[str], batch_size: int = 64, dtype: str = "float32") -> list[float]:
    """Log-probability of each answer under the model in ``folder``, given its prompt; nats, EOS included.

    Args:
        folder: a finished stage's ``model`` folder.
        prompts: as a generator reads them, before the token contract's template.
        answers: one per prompt.
        batch_size: sequences per forward pass, of similar length.
        dtype: of the weights.
    """
    loaded = load_folder(folder, dtype=getattr(torch, dtype), role="generator")
    model = loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    head = model.get_output_embeddings()
    device = head.weight.device
    rows = loaded.tokens.encode_pairs(loaded.tokenizer, prompts, answers)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    found = [0.0] * len(rows)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids = pad([rows[i][0] for i in chosen], loaded.tokenizer.pad_token_id or 0).to(device)
        labels = pad([rows[i][1] for i in chosen], IGNORE).to(device)
        mask = (torch.arange(ids.shape[1])[None] < torch.tensor([[len(rows[i][0])] for i in chosen])).long().to(device)
        logps, places = token_logps(hidden_states(model, ids, mask), head.weight, labels, getattr(head, "bias", None))
        for i, value in zip(chosen, row_sums(logps, places, len(chosen)).tolist(), strict=True):
            found[i] = value
    return found
