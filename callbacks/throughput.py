"""Measures training, the first steps left out: tokens per second, and what share of the machine's matrix products they need.

Logged as ``tokens_per_second`` and ``flops_share``: the step's model FLOPs (``models/flops.py``) per second beside the rate of
a large bfloat16 product on the same device, measured when training starts. What it found at the end is in ``throughput.json`` in the
fit's folder: ``speedlit plan --measured STAGE=throughput.json`` plans with it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from speedlit.files import write_json
from speedlit.labels import IGNORE
from speedlit.models.flops import gemm_rate, step_flops
from speedlit.strategies import split_over


class Throughput(L.Callback):
    """Tokens of this rank per second, padding not counted; where processes share each matrix, those that they compute together.

    Args:
        skip: steps at the start that are not timed.
        every_n_steps: window of one figure.
        report: print one line at the end, and write throughput.json.
    """

    def __init__(self, skip: int = 5, every_n_steps: int = 20, report: bool = True) -> None:
        self.skip, self.every_n_steps, self.report = skip, every_n_steps, report
        self.tokens = self.seconds = self.flops = 0.0
        self.limit = 0.0
        self._seen = 0
        self._window = (0.0, 0.0)
        self._start: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure what the device can do."""
        self.limit = gemm_rate(str(pl_module.device), torch.bfloat16)

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock after the first steps."""
        if self._start is None and self._seen >= self.skip:
            self._start = time.perf_counter()
            self._window = (self._start, 0.0)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, index: int) -> None:
        """Count the step's tokens."""
        self._seen += 1
        if self._start is None:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.tokens += batch["tokens"]
        predicted = sum(int((micro["labels"][:, 1:] != IGNORE).sum()) for micro in batch["micro"] if "labels" in micro)
        self.flops += step_flops(getattr(pl_module, "model", pl_module), batch["tokens"], predicted) / split_over(trainer.strategy)
        self.seconds = now - self._start
        if self._seen % self.every_n_steps == 0:
            since, before = self._window
            trainer.callback_metrics["tokens_per_second"] = torch.tensor((self.tokens - before) / (now - since))
            trainer.callback_metrics["flops_share"] = torch.tensor(self.share())
            self._window = (now, self.tokens)

    def share(self) -> float:
        """Model FLOP/s of the timed steps as a share of the device's rate."""
        return self.flops / self.seconds / self.limit if self.seconds and self.limit else 0.0

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One line for a person."""
        if self.report and self.seconds and trainer.is_global_zero:
            rate = f"{self.share():.0%} of the device's {self.limit / 1e9:,.0f} GFLOP/s in bfloat16"
            steps = self._seen - self.skip
            print(f"  {self.tokens / self.seconds:,.0f} tokens/s, {self.seconds / steps:.3g} s a step over {steps} steps, {rate}", file=sys.stderr)
            found = {"steps": steps, "seconds": self.seconds, "tokens": self.tokens, "ranks": trainer.world_size, "device": str(pl_module.device)}
            write_json(Path(trainer.default_root_dir) / "throughput.json", {**found, "flops_share": self.share(), "gemm_tflops": self.limit / 1e12})
