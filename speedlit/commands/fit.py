"""``speedlit fit | validate | test | predict``: one module, one data set, one trainer, from a recipe."""

from __future__ import annotations

import fcntl
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from speedlit.errors import UsageError

HELP = """usage: speedlit {fit,validate,test,predict} --config NAME|FILE [--config FILE ...] [--key value ...]

  --config NAME|FILE       a recipe (`speedlit list` shows those shipped); later ones win; nested files are read in
  --data.shards DIR        short for --data.init_args.shards; likewise --model.KEY and --optimizer.KEY
  --trainer trainer/cpu.yaml, --model.adapter adapter/lora.yaml      a shipped part in place of the recipe's
  --trainer.max_steps N    any key of the recipe, of the classes it names, or of Lightning's Trainer
  --trainer.callbacks+=Throughput                                    append to a list
  --trainer.default_root_dir DIR   where checkpoints, metrics.csv and model/ go (default: runs/fit)
  --trainer.logger false   no curves for TensorBoard in DIR/curves (or another logger by class_path: docs/training.md)
  --ckpt_path FILE         go on from this checkpoint; without it fit goes on from DIR/checkpoints/last.ckpt, if it is there
  --print_config           print the recipe with every key and what it means, and stop
  --help-all               every key of the classes that --config names (default: fit/junior), with types and defaults

fit trains and leaves DIR/model; validate, test and predict run one pass with the weights of --ckpt_path or DIR/checkpoints/last.ckpt.
example: speedlit fit --config fit/junior --data.shards runs/shards/sft --trainer.max_steps 100"""

TENSORBOARD = "lightning.pytorch.loggers.TensorBoardLogger"


def run(argv: Sequence[str]) -> int:
    """Run one of the four commands.

    Args:
        argv: the command word and its options.
    """
    command, *words = argv
    if not words or "--help" in words or "-h" in words:
        print(HELP)
        return 0 if words else 2
    complete = "--help-all" in words
    names, words, show = _split([word for word in words if word != "--help-all"])
    if complete:
        names = names or ["fit/junior"]
    if not names:
        raise UsageError(f"speedlit {command} needs --config NAME|FILE, for instance --config fit/junior; `speedlit list` shows the recipes")
    from speedlit.pipeline.recipe import override
    from speedlit.pipeline.yamlfiles import merge, read_recipe

    config: dict[str, Any] = {}
    for name in names:
        config = merge(config, read_recipe(name))
    config = override(config, words)
    if complete:
        from speedlit.pipeline.recipe import full_help

        print(full_help(config))
        return 0
    if show:
        return _print(config)
    return _fit(config) if command == "fit" else _look(command, config)


def _split(words: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """Names after --config, the other words, and whether --print_config is among them."""
    names, rest, show = [], list(words), False
    others: list[str] = []
    while rest:
        word = rest.pop(0)
        if word == "--print_config":
            show = True
        elif word in ("--config", "-c"):
            if not rest:
                raise UsageError("--config needs a name or file")
            names.append(rest.pop(0))
        elif word.startswith("--config="):
            names.append(word.partition("=")[2])
        else:
            others.append(word)
    return names, others, show


def _root(config: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    """The recipe with a root folder, and that folder."""
    trainer = dict(config.get("trainer") or {})
    trainer["default_root_dir"] = trainer.get("default_root_dir") or "runs/fit"
    return {**config, "trainer": trainer}, Path(trainer["default_root_dir"])


def _logged(config: dict[str, Any], root: Path) -> dict[str, Any]:
    """The recipe with curves for TensorBoard in the root folder, where it names no logger."""
    if (named := config["trainer"].get("logger")) is not None and named is not True:
        return config
    # not in a folder called tensorboard: started from beside it, `python -m` would find it in the place of the package
    logger = {"class_path": TENSORBOARD, "init_args": {"save_dir": str(root), "name": "curves", "version": ""}}
    return {**config, "trainer": {**config["trainer"], "logger": logger}}


def _print(config: dict[str, Any]) -> int:
    from speedlit.pipeline.recipe import complete

    print("# A recipe with every key. Start: speedlit fit --config FILE, where FILE holds this (beside the recipe's own code, if it has some).")
    config, _ = _root(config)
    if config["trainer"].get("logger") is None:
        config["trainer"]["logger"] = True  # not spelt out: a logger's folder would stay behind when another default_root_dir is chosen
    print(complete(config), end="")
    return 0


def _fit(config: dict[str, Any]) -> int:
    """Train, and leave a finished model folder; one process at a time, as two would write over each other's checkpoints."""
    from speedlit.pipeline.fitting import add_callbacks, finish, run_fit
    from speedlit.pipeline.loop import locked
    from speedlit.pipeline.recipe import make, set_threads

    config, root = _root(config)
    checkpoint = _checkpoint(config, root)
    set_threads(config)
    made = make(_logged(config, root))
    add_callbacks(made.trainer, True, "fit")
    if checkpoint is not None:
        print(f"  going on from {checkpoint}", file=sys.stderr)
    first = made.trainer.is_global_zero
    busy = f"another `speedlit fit` is at work in {root}; wait for it, or give this one another --trainer.default_root_dir"
    with locked(root, ".fit.lock", busy, fcntl.lockf) if first else nullcontext():  # lockf: workers, which are forks, don't hold it after a kill -9
        run_fit(made, checkpoint or root / "checkpoints" / "none")
        result = finish(made, root)
    if made.trainer.is_global_zero and "model" in result:
        print(f"  {_closing(result)}; model in {result['model']}, figures in {root / 'metrics.csv'}", file=sys.stderr)
    return 0


def _closing(result: dict[str, Any]) -> str:
    """``300 steps in 42 s, loss 1.23 at the end``."""
    from speedlit.progress import clock

    steps, loss = result["steps"], result["final"].get("loss")
    said = f"{steps:,} {'step' if steps == 1 else 'steps'} in {clock(result['seconds'])}"
    return said if loss is None else f"{said}, loss {loss:.4g} at the end"


def _checkpoint(config: dict[str, Any], root: Path) -> Path | None:
    """The checkpoint to start from: the one named, else the last one of the root folder.

    Raises:
        UsageError: the one named isn't there.
    """
    named = config.get("ckpt_path")
    if named:
        if not Path(named).exists():
            raise UsageError(f"--ckpt_path {named}: no such file")
        return Path(named)
    from speedlit.callbacks.resume import last_whole

    last = last_whole(root / "checkpoints" / "last.ckpt")
    return last if last.exists() else None


def _look(command: str, config: dict[str, Any]) -> int:
    """validate, test or predict."""
    from speedlit.pipeline.recipe import make, set_threads
    from speedlit.strategies import read_folders

    config, root = _root(config)
    checkpoint = _checkpoint(config, root)
    set_threads(config)
    made = make(config)
    read_folders(made.trainer.strategy)
    if checkpoint is None:
        print(f"  no checkpoint in {root}: the weights are those before training", file=sys.stderr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's notices about callbacks that only training has
        found = getattr(made.trainer, command)(made.model, datamodule=made.datamodule, ckpt_path=str(checkpoint) if checkpoint else None)
    if command != "predict":
        for name, value in sorted((found or [{}])[0].items()):
            print(f"{name}: {value:.6f}")
        return 0
    from speedlit.files import write_jsonl

    count = write_jsonl(root / "predictions.jsonl", (row for batch in found or [] for row in batch))
    print(f"{count} predictions in {root / 'predictions.jsonl'}")
    return 0
