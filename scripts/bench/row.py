"""What a row of the bench is, and how its two sides are timed: our Lightning fit and a Hugging Face trainer, from the first step to the last."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from transformers import TrainerCallback

Side = Callable[[], float]
FITS = itertools.count()
# wall clock, or the CPU time of this process: on a machine that others use at the same time only the second can be compared
now = time.process_time if os.environ.get("BENCH_CLOCK") == "cpu" else time.perf_counter


@dataclass
class Row:
    """One comparison.

    Attributes:
        unit: of what both sides return.
        peer: the library compared with.
        ours: one timed round.
        theirs: one timed round of each configuration that the peer might be fastest in, by name.
        rounds: measured rounds of each side, after one that does not count.
        flops: model FLOPs per unit (forward and backward of real tokens, nothing computed twice), or None.
    """

    unit: str
    peer: str
    ours: Side
    theirs: dict[str, Side] = field(default_factory=dict)
    rounds: int = 3
    flops: float | None = None


class Clock(L.Callback):
    """Seconds from the start of training to the end of the last step."""

    last = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start."""
        self.start = now()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """A step is done."""
        Clock.last = now() - self.start


class PeerClock(TrainerCallback):
    """The same for a Hugging Face trainer."""

    seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self.start = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step is done."""
        self.seconds = now() - self.start


def fit_seconds(recipe: dict[str, Any], folder: Path) -> float:
    """Our fit of a recipe: seconds of its steps."""
    from speedlit.pipeline.fitting import fit

    trainer = {"accelerator": "cpu", "callbacks": [{"class_path": "scripts.bench.row.Clock"}], **recipe.get("trainer", {})}
    recipe = {"seed_everything": 0, "optimizer": {"class_path": "AdamW", "init_args": {"lr": 1e-4}}, **recipe, "trainer": trainer}
    fit(recipe, folder / f"ours-{next(FITS)}", progress=False)
    return Clock.last


def peer_seconds(trainer: Any) -> float:
    """A Hugging Face trainer's seconds of its steps."""
    clock = PeerClock()
    trainer.add_callback(clock)
    trainer.train()
    return clock.seconds
