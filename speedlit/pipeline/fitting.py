"""One fit from one recipe: resumes where it stopped, leaves a finished model folder.

    fit(recipe, out) -> {"steps", "seconds", "final", "model"}

``out`` holds ``checkpoints/last.ckpt``, ``metrics.csv``, ``model/`` and, last, ``fit.json``. A finished fit is not done again;
one with another recipe, other shards or another start model begins anew.
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

from speedlit.errors import UsageError
from speedlit.files import content_id, disk_error, read_json, read_object, remove, sha256_file, write_json

PACKAGED = Path(__file__).resolve().parent.parent / "offline" / "base"
RESULT, STATE = "fit.json", "fit-started.json"


def fit(config: dict[str, Any], out: Path | str, *, progress: bool = True) -> dict[str, Any]:
    """Train by a recipe.

    Args:
        config: the structure of a ``speedlit fit`` YAML; class names may be short (``SFTModule``).
        out: the folder of the fit.
        progress: show a bar.

    Returns:
        steps, seconds (of the training, over all attempts), final (last figures and scores), model (the finished folder).

    Raises:
        UsageError: a recipe, shards or base model that can't be used.
        SpeedlitError: the loss is no longer finite, or the disk is full.
    """
    out = Path(out)
    if (done := begin(config, out)) is not None:
        return done

    from speedlit.pipeline.recipe import make, set_threads

    set_threads(config)
    cli = make(placed(config, out))
    add_callbacks(cli.trainer, progress, out.name)
    run_fit(cli, out / "checkpoints" / "last.ckpt")
    return finish(cli, out)


def begin(config: dict[str, Any], out: Path) -> dict[str, Any] | None:
    """Make ``out`` ready: the result of a finished fit of this recipe, else None; what another recipe has left is removed."""
    identity = {"id": _identity(config)}
    before = read_json(out / STATE) if (out / STATE).is_file() else None
    if before == identity and (out / RESULT).is_file():
        return read_object(out / RESULT, "steps", "seconds", "final")
    if before is not None and before != identity:
        for name in ("checkpoints", "model", "metrics.csv"):
            remove(out / name)
    remove(out / RESULT)  # of another recipe, or of a `speedlit fit` in this folder: nobody can say what it belongs to
    write_json(out / STATE, identity)
    return None


def placed(config: dict[str, Any], out: Path) -> dict[str, Any]:
    """The recipe with ``out`` as the trainer's folder."""
    return {**config, "trainer": {**(config.get("trainer") or {}), "default_root_dir": str(out)}}


def finish(cli: Any, out: Path) -> dict[str, Any]:
    """After training: the finished model folder and ``fit.json``; all ranks must come here. Returns what ``fit`` does."""
    from speedlit.callbacks.metrics import Metrics
    from speedlit.strategies import sharded

    trainer, model = cli.trainer, out / "model"
    clock = next(callback for callback in trainer.callbacks if isinstance(callback, Metrics))
    final = {**getattr(cli.model, "figures", {}), **{name: float(value) for name, value in trainer.callback_metrics.items()}}
    result = {"steps": trainer.global_step, "seconds": round(clock.seconds, 3), "final": final}
    if hasattr(cli.model, "save_model"):
        if trainer.is_global_zero or sharded(trainer.strategy):
            cli.model.save_model(model)
        result["model"] = str(model)
    if trainer.is_global_zero:
        write_json(out / RESULT, result)
    return result


def run_fit(cli: Any, checkpoint: Path) -> None:
    """Train from ``checkpoint`` if it is there.

    Raises:
        UsageError: the checkpoint can't be read.
    """
    from speedlit.callbacks.resume import last_whole
    from speedlit.strategies import read_folders

    checkpoint = last_whole(checkpoint)
    start = str(checkpoint) if checkpoint.exists() else None
    read_folders(cli.trainer.strategy)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # libraries' notices; what matters is said in our words
            cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=start)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        if start and not cli.trainer.global_step and ("zip archive" in str(error) or isinstance(error, (pickle.UnpicklingError, EOFError))):
            raise UsageError(f"checkpoint {checkpoint} is damaged; remove it to start this fit from the beginning") from error
        raise
    except OSError as error:
        raise disk_error(error, checkpoint.parent) from error
    except SystemExit:  # Lightning ends an interrupted process on its own
        if cli.trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


def add_callbacks(trainer: Any, progress: bool, label: str) -> None:
    """What every fit has, where the recipe doesn't bring its own: progress, metrics.csv, last.ckpt after all others, and Requeue under Slurm."""
    from speedlit.callbacks.metrics import Metrics
    from speedlit.callbacks.progress import FitProgress
    from speedlit.callbacks.requeue import Requeue
    from speedlit.callbacks.resume import Resume
    from speedlit.strategies import in_slurm

    own = [FitProgress(label)] if progress else []
    for callback in [*own, Metrics(), Resume(every_seconds=30.0)]:
        if not any(isinstance(other, type(callback)) for other in trainer.callbacks):
            trainer.callbacks.append(callback)
    if in_slurm() and not any(isinstance(other, Requeue) for other in trainer.callbacks):
        trainer.callbacks.append(Requeue())  # after Resume


def _identity(config: dict[str, Any]) -> str:
    """What the outcome depends on: the recipe without what only the machine decides, the shards, and the models it starts from."""
    data = dict((config.get("data") or {}).get("init_args") or {})
    plan = {key: value for key, value in data.items() if key not in ("workers", "micro_batch", "micro_tokens")}
    trainer = {key: value for key, value in (config.get("trainer") or {}).items() if key not in ("devices", "num_nodes", "strategy")}
    places = data.get("shards", [])
    places = [place.get("path", "") if isinstance(place, dict) else place for place in (places if isinstance(places, list) else [places])]
    manifests = [Path(place) / "manifest.json" for place in places]
    digests = [content_id(read_json(path)) if path.is_file() else None for path in manifests]
    backbone = ((config.get("model") or {}).get("init_args") or {}).get("backbone") or {}
    models = [_fingerprint(str(name)) for name in (backbone.get("name", ""), *(backbone.get("adapters") or []))]
    plain = {key: value for key, value in config.items() if key != "threads"}
    plain |= {"data": {**(config.get("data") or {}), "init_args": plan}, "trainer": trainer}
    return content_id([plain, digests, models])


def _fingerprint(name: str) -> str | None:
    """What a model folder holds: digests of its files (size and time of those above 64 MiB); None for a hub id."""
    folder = PACKAGED if name == "speedlit:base" else Path(name)
    if not name or not folder.is_dir():
        return None
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".safetensors", ".bin")]
    stats = {path.name: path.stat() for path in files}
    large = 64 << 20
    return content_id({p.name: sha256_file(p) if stats[p.name].st_size <= large else [stats[p.name].st_size, stats[p.name].st_mtime_ns] for p in files})
