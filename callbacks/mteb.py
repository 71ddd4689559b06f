"""Score the embedder with mteb while it trains: ``mteb/<task>`` and ``mteb/mean`` for loggers, checkpoints and early stopping.

The training run is the same with and without it: modes, dtypes and random generators are put back after every look, so the
loss trace does not change by a bit. A failing task is reported and leaves the training alone. Every look is also a line of
``mteb.jsonl`` beside the run: step, scores, failures, seconds, share of the time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from speedlit.errors import UsageError


class MTEB(L.Callback):
    """Runs mteb tasks on the live module.

    Args:
        tasks: task or benchmark names; None means every set in ``data``.
        data: a folder with ``tasks.json`` (see ``speedlit.evaluation.tasks``); without it mteb's own data are used.
        every_n_steps: score after every so many optimizer steps, for instance 500.
        at_start: score the untrained model.
        at_end: score the finished model.
        at_validation: score at every validation.
        instructions: by task name, in place of the task's own instruction; an empty text means none.
        instruct: False leaves the tasks' own instructions away.
        token_budget: padded tokens per forward pass.
        output: folder for results in mteb's layout; None keeps none.

    Raises:
        UsageError: there is nothing to run, or the module cannot encode texts. Raised before training starts.
    """

    def __init__(
        self,
        tasks: str | list[str] | None = None,
        data: str | None = None,
        every_n_steps: int | None = None,
        at_start: bool = True,
        at_end: bool = True,
        at_validation: bool = False,
        instructions: dict[str, str] | None = None,
        instruct: bool = True,
        token_budget: int = 4096,
        output: str | None = None,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise UsageError(f"MTEB.every_n_steps is {every_n_steps}: give a positive number of steps, or null for never")
        if tasks is None and data is None:
            raise UsageError("MTEB has nothing to run: set `tasks` (names) or `data` (a folder with a tasks.json)")
        self.names, self.data, self.every_n_steps = tasks, data, every_n_steps
        self.at_start, self.at_end, self.at_validation = at_start, at_end, at_validation
        self.instructions, self.instruct, self.token_budget = instructions, instruct, token_budget
        self.output = Path(output) if output else None
        self.history: list[tuple[int, dict[str, float]]] = []
        self.seconds = 0.0
        self._tasks: Sequence[Any] = ()
        self._started = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Load the tasks, so that a wrong name or file shows now."""
        from speedlit.evaluation.tasks import load_tasks

        if stage == "fit" and not self._tasks:
            self._tasks = load_tasks(self.names, self.data)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The score before training; not again after a resume."""
        self._started = time.monotonic()
        if self.at_start and trainer.global_step == 0:
            self.score(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """The score every so many optimizer steps; micro-batches of one step count once."""
        if self.every_n_steps and trainer.global_step and trainer.global_step % self.every_n_steps == 0:
            self.score(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The score with every validation but the sanity check."""
        if self.at_validation and not trainer.sanity_checking:
            self.score(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The score of the finished model, and what all of this cost."""
        if self.at_end:
            self.score(trainer, pl_module)

    def score(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, float]:
        """Score the module as it is now, once per optimizer step; returns main scores by task.

        Ranks share the texts out and go through the model equally often, so that sharded weights are gathered in step; the first one reports.
        """
        step = trainer.global_step
        if self.history and self.history[-1][0] == step:
            self._log(trainer, step, self.history[-1][1])
            return self.history[-1][1]
        from speedlit.evaluation.folders import module_encoder
        from speedlit.evaluation.run import evaluate

        start = time.monotonic()
        options = {"instructions": self.instructions, "instruct": self.instruct, "token_budget": self.token_budget}
        encoder = module_encoder(pl_module, name=f"speedlit/{Path(trainer.default_root_dir).name}", revision=f"step-{step}", **options)
        failures: dict[str, str] = {}
        output = self.output if trainer.is_global_zero else None
        scores = evaluate(encoder, self._tasks, output=output, resume=False, failed=failures.__setitem__)  # a step's number doesn't name its weights
        self.seconds += time.monotonic() - start
        self.history.append((step, scores))
        self._log(trainer, step, scores)
        if trainer.is_global_zero:
            self._tell(trainer, step, scores, failures, time.monotonic() - start)
        return scores

    def _log(self, trainer: L.Trainer, step: int, scores: Mapping[str, float]) -> None:
        """To the loggers, and to where ModelCheckpoint and EarlyStopping look (every rank, so that they agree)."""
        if not scores:
            return
        metrics = {f"mteb/{task}": score for task, score in scores.items()}
        metrics["mteb/mean"] = sum(scores.values()) / len(scores)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def _tell(self, trainer: L.Trainer, step: int, scores: Mapping[str, float], failures: Mapping[str, str], seconds: float) -> None:
        """One line for a person and one per failed task; the same as a line of ``mteb.jsonl`` in the trainer's root folder."""
        share = self.seconds / max(time.monotonic() - self._started, 1e-9)
        found = ", ".join(f"{task} {score:.4f}" for task, score in scores.items()) or "no task succeeded"
        mean = f", mean {sum(scores.values()) / len(scores):.4f}" if len(scores) > 1 else ""
        print(f"  mteb at step {step}: {found}{mean} ({seconds:.1f} s; {share:.0%} of the time so far)", file=sys.stderr, flush=True)
        for task, reason in failures.items():
            print(f"  mteb at step {step}: {task} failed: {reason}; training goes on", file=sys.stderr, flush=True)
        row = {"step": step, "scores": dict(scores), "failures": dict(failures), "seconds": round(seconds, 2), "share": round(share, 4)}
        path = Path(trainer.default_root_dir) / "mteb.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, sort_keys=True) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """Scores so far, for a resumed run."""
        return {"history": [[step, dict(scores)] for step, scores in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the scores of the interrupted run."""
        self.history = [(step, dict(scores)) for step, scores in state_dict["history"]]
