"""Looking at a model without leaving a trace: its modes and the random generators are put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def same_randomness() -> Iterator[None]:
    """Put the random generators of Python, numpy and torch (all devices) back where they were.

    mteb seeds all of them globally: when it is imported, when a task is made, and when one is evaluated.
    """
    python, numpy = random.getstate(), np.random.get_state()
    host, devices = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(host)
        if devices:
            torch.cuda.set_rng_state_all(devices)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients; afterwards every submodule is back in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():  # not inference_mode: a buffer made lazily in there could not be trained with afterwards
            yield
    finally:
        for module, mode in modes:
            module.training = mode
