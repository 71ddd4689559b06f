"""Score an encoder on tasks, through mteb itself and without its cache.

mteb's cache files local models under one common name, so that a second checkpoint gets the first one's score; here every
result is computed, and resuming is by files of our own that carry the model's content hash. On several ranks all of them score
every task, with vectors that each has computed a share of; the first one reads and writes the files and decides what is done.
"""

from __future__ import annotations

import copy
import logging
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speedlit.errors import SpeedlitError
from speedlit.evaluation import ranks
from speedlit.evaluation.encoder import Encoder
from speedlit.evaluation.readable import too_long
from speedlit.evaluation.state import same_randomness
from speedlit.progress import Progress

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.types import EncodeKwargs

Failed = Callable[[str, str], None]


def evaluate(
    encoder: Encoder,
    tasks: Sequence[AbsTask],
    *,
    output: Path | None = None,
    resume: bool = True,
    failed: Failed | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Main score of every task, as a fraction of 1.

    Args:
        encoder: the model to score.
        tasks: tasks from ``load_tasks``. They are not changed, and give the same samples every time.
        output: results in mteb's own layout go to ``output/results/<model>/<revision>/<task>.json``.
        resume: a task whose file is there already is read from it, not run again; only for a revision that names the weights.
        failed: told the name of a task that failed and why; the others go on. None makes the first failure an error.
        progress: show a bar.

    Raises:
        SpeedlitError: a task failed and there is no ``failed``.
    """
    scores: dict[str, float] = {}
    with same_randomness(), quiet(), Progress("evaluate", len(tasks), "tasks") if progress and ranks.number() == 0 else _silent() as bar:
        for task in tasks:
            outcome = _run(encoder, task, output, resume)
            name = task.metadata.name
            if not isinstance(outcome, str):
                scores[name] = outcome
            elif failed is None:
                raise SpeedlitError(f"task {name} failed: {outcome}")
            else:
                failed(name, outcome)
            bar.advance(note=f"{name} {outcome:.4f}" if name in scores else f"{name} failed")
    return scores


def evaluate_folder(
    model: str, tasks: str | Sequence[str] | None = None, data: str | None = None, output: str | None = None, progress: bool = True, **options: Any
) -> dict[str, float]:
    """``evaluate`` of a model folder, callable in a fresh process; ``options`` as in ``open_encoder``."""
    from speedlit.evaluation.folders import open_encoder
    from speedlit.evaluation.tasks import load_tasks

    with same_randomness():
        ready = load_tasks(tasks, data)
        return evaluate(open_encoder(model, **options), ready, output=Path(output) if output else None, progress=progress)


def _run(encoder: Encoder, task: AbsTask, output: Path | None, resume: bool) -> float | str:
    """The main score of one task, or why there is none."""
    import mteb
    from mteb.cache import ResultCache
    from mteb.results import TaskResult

    meta = encoder.mteb_model_meta
    files = ResultCache(cache_path=output) if output is not None else None
    kept = None
    if files is not None and resume and ranks.number() == 0:
        path = files.get_task_result_path(task.metadata.name, meta)
        kept = float(TaskResult.from_disk(path).get_score()) if path.is_file() else None
    kept = ranks.agreed(kept)
    if kept is not None:
        return float(kept)
    if reason := too_long(encoder, task):
        return reason
    options: EncodeKwargs = {"show_progress_bar": False, "batch_size": 256}  # the size of mteb's loader, not of a forward pass
    result = mteb.evaluate(encoder, [_fresh(task)], cache=None, co2_tracker=False, raise_error=False, show_progress_bar=False, encode_kwargs=options)
    reasons = ranks.everyone((str(result.exceptions[0].exception) or "no reason given") if result.exceptions else None)
    if failed := [reason for reason in reasons if reason is not None]:
        return str(failed[0])
    found = result.task_results[0]
    if np.isnan(ranks.agreed(found.get_score())):
        return "its score is no number; are all its texts alike or empty?"
    if files is not None and ranks.number() == 0:
        files.save_to_cache(found, meta)
    return float(ranks.agreed(found.get_score()))


def _fresh(task: AbsTask) -> AbsTask:
    """The task with its random generators at their start: a used task would draw other samples than a new one."""
    task = copy.copy(task)
    task.rng_state, task.np_rng = random.Random(task.seed), np.random.default_rng(task.seed)
    return task


@contextmanager
def quiet() -> Iterator[None]:
    """No bars and no log lines of mteb and datasets; what matters is reported by the caller."""
    import datasets

    logger = logging.getLogger("mteb")
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "the task is superseded by ..." once per look
            yield
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


class _Silent:
    """A progress bar that shows nothing."""

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Do nothing."""


@contextmanager
def _silent() -> Iterator[Any]:
    yield _Silent()
