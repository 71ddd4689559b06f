"""From a fit recipe (YAML, or the same as a dict) to module, data and trainer, through the one parser of the house."""

from __future__ import annotations

import inspect
import logging
import os
import re
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import StrategyRegistry

from speedlit.data.tokens import TokenContract
from speedlit.errors import SpeedlitError, UsageError
from speedlit.models.adapter import QLoRA
from speedlit.models.backbone import Backbone
from speedlit.modules.base import Schedule
from speedlit.pipeline import commented
from speedlit.pipeline.yamlfiles import SHORT, merge, nested, plain_value, reason, suggestion
from speedlit.plugins import failure, plugins
from speedlit.strategies import environment, strategy

# What libraries say in every run and nobody needs; srun is for who wants several processes (docs/clusters.md).
NOTICES = ("LeafSpec", "Total length of `list` across ranks", "does not have many workers", "is not resumable", "litlogger", "The `srun` command is available")
# Quiet and light unless a recipe says otherwise.
TRAINER = {
    "accelerator": "auto", "devices": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False, "num_sanity_val_steps": 0, "use_distributed_sampler": False,
}  # fmt: skip
FIXED = {
    "accumulate_grad_batches": "data.init_args.micro_batch: a step of data.init_args.batch_size samples is cut into micro-batches of that size",
    "gradient_clip_val": "model.init_args.clip",
}
TOP = ("seed_everything", "model", "data", "optimizer", "trainer", "ckpt_path", "threads")
MEANINGS = {
    "seed_everything": "every draw derives from it",
    "model": "what is trained, and how",
    "data": "what it is trained on",
    "trainer": "how long and where: Lightning's Trainer",
    "ckpt_path": "checkpoint to go on from; null takes the last one of trainer.default_root_dir, if there is one",
    "threads": "torch threads; null leaves torch's default",
}
LOGGER = "true: `speedlit fit` writes curves for TensorBoard into default_root_dir/curves; false: none; or another logger, by its class_path"
BASES = {"model": L.LightningModule, "data": L.LightningDataModule, "trainer.callbacks": L.Callback, "optimizer": torch.optim.Optimizer}
NESTED: dict[str, Any] = {"backbone": Backbone, "tokens": TokenContract, "schedule": Schedule}


class Parser(LightningCLI):
    """LightningCLI that saves and runs nothing by itself."""

    def __init__(self, config: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
            super().__init__(
                L.LightningModule, L.LightningDataModule, subclass_mode_model=True, subclass_mode_data=True, args=config, run=False,
                auto_configure_optimizers=False, save_config_callback=None, seed_everything_default=0, trainer_defaults=TRAINER,
                parser_kwargs={"exit_on_error": False},
            )  # fmt: skip

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """``threads`` is torch's."""
        parser.add_argument("--threads", type=int | None, default=None, help="torch threads; null leaves torch's default")
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="checkpoint to go on from")


class Checker(Parser):
    """Parses without making anything."""

    def instantiate_classes(self) -> None:
        """Nothing is made."""


def make(config: dict[str, Any], parser: type[Parser] = Parser) -> Parser:
    """Module, data and trainer of a recipe, as ``.model``, ``.datamodule``, ``.trainer``.

    Raises:
        UsageError: unknown keys (all of them, each with the nearest real one), wrong types, classes that don't exist.
    """
    quiet()
    config = prepared(config)
    mistakes = unknown_keys(config)
    if mistakes:
        for key in re.findall(r"unknown key `([^`]+)`", "\n".join(mistakes)):
            config = without(config, key.split(".")) or config
        raise UsageError("\n".join(mistakes + wrong_values(config)))
    trainer = config["trainer"]
    if parser is Parser and trainer.get("logger", False) in (None, True):
        config = {**config, "trainer": {**trainer, "logger": False}}  # `speedlit fit` has put its own there; Lightning's would write elsewhere
    try:
        return parser(config)
    except (ArgumentError, ValueError, TypeError, ImportError) as error:
        raise ours(error) or UsageError("\n".join(wrong_values(config)) or f"recipe: {reason(str(error))}") from error


def wrong_values(config: dict[str, Any]) -> list[str]:
    """One line per value of a wrong type: the parser stops at the first, so what it names is taken out until nothing is left to name."""
    found: list[str] = []
    while len(found) < 20:
        try:
            Checker(config)
        except (ArgumentError, ValueError, TypeError, ImportError) as error:
            line = reason(str(error))
            key = re.match(r"([\w.]+) is ", line)
            shorter = without(config, key[1].split(".")) if key else None
            if shorter is None:  # unknown and missing keys, which `unknown_keys` tells
                return found
            config = shorter
            found.append(f"recipe: {line}")
        else:
            return found
    return found


def without(config: dict[str, Any], path: list[str]) -> dict[str, Any] | None:
    """The recipe without one plain value, ``init_args`` left out of its path or not; None where it has no such value."""
    head, *tail = path
    if head not in config:
        inner = config.get("init_args")
        shorter = without(inner, path) if isinstance(inner, dict) else None
        return None if shorter is None else {**config, "init_args": shorter}
    if not tail:
        return None if isinstance(config[head], dict) else {key: value for key, value in config.items() if key != head}
    below = config[head]
    shorter = without(below, tail) if isinstance(below, dict) else None
    return None if shorter is None else {**config, head: shorter}


def complete(config: dict[str, Any]) -> str:
    """The recipe with everything filled in, as YAML in which each key says what it means; a recipe itself."""
    made = make(config, Checker)
    values = {key: value for key, value in yaml.safe_load(made.parser.dump(made.config, skip_unset=False)).items() if key in TOP}
    return commented.dump({key: values[key] for key in TOP if key in values}, explainer(values))


def explainer(values: dict[str, Any]) -> commented.Explain:
    """Says of each key of a filled-in recipe what it means, in the words of the class that reads it."""
    said: dict[tuple[str, ...], str] = {(key,): text for key, text in MEANINGS.items()}
    plain = {**NESTED, "adapter": QLoRA}  # LoRA's keys are among its own

    def note(cls: Any, path: tuple[str, ...]) -> None:
        said.update({(*path, name): text for name, text in commented.meanings(cls).items()})

    def walk(value: Any, path: tuple[str, ...]) -> None:
        if isinstance(value, list):
            for number, item in enumerate(value):
                walk(item, (*path, str(number)))
        if not isinstance(value, dict):
            return
        if isinstance(value.get("class_path"), str):
            module, _, attribute = value["class_path"].rpartition(".")
            cls = getattr(import_module(module), attribute)
            said[(*path, "class_path")] = commented.headline(cls)
            note(cls, (*path, "init_args"))
        elif path[-1:] and path[-1] in plain:
            note(plain[path[-1]], path)
        for key, item in value.items():
            walk(item, (*path, str(key)))

    walk(values, ())
    note(L.Trainer, ("trainer",))
    said[("trainer", "logger")] = LOGGER
    return lambda path: said.get(path, "")


def full_help(config: dict[str, Any]) -> str:
    """Every key of the classes that a recipe names, with types and defaults, as the parser knows them."""
    from jsonargparse import ArgumentParser

    config = prepared(config)
    model, data = config.get("model"), config.get("data")
    arguments = (model.get("init_args") if isinstance(model, dict) else None) or {}
    blocks = [("model", model), ("data", data), ("optimizer", arguments.get("optimizer")), ("model.adapter", arguments.get("adapter"))]
    blocks += [("trainer.callbacks", block) for block in config["trainer"].get("callbacks") or []]
    out = []
    for name, block in blocks:
        if isinstance(block, dict) and isinstance(block.get("class_path"), str):
            module, _, attribute = block["class_path"].rpartition(".")
            parser = ArgumentParser(prog=f"{name}: {block['class_path']}", add_help=False, usage="%(prog)s")
            parser.add_class_arguments(getattr(import_module(module), attribute), name, skip={"params"}, fail_untyped=False)
            out.append(parser.format_help().removeprefix("usage: "))
    parser = ArgumentParser(prog="trainer: lightning.Trainer", add_help=False, usage="%(prog)s")
    parser.add_class_arguments(L.Trainer, "trainer", fail_untyped=False)
    return "\n".join([*out, parser.format_help().removeprefix("usage: ")])


def ours(error: BaseException | None) -> SpeedlitError | None:
    """The error of ours that the parser has wrapped in its own."""
    while error is not None and not isinstance(error, SpeedlitError):
        error = error.__cause__ or error.__context__
    return error


def quiet() -> None:
    """Leave Lightning's tips and notices off the screen; warnings of its own about our loaders as well."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for words in NOTICES:
        warnings.filterwarnings("ignore", message=f".*{words}")
    warnings.filterwarnings("ignore", category=FutureWarning)


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """Short class names in full, our strategy names as Lightning's; ``optimizer`` at the top goes to the module."""
    config = _full_names(config)
    if isinstance(config.get("optimizer"), dict) and isinstance(config.get("model"), dict):
        arguments = dict(config["model"].get("init_args") or {})
        arguments["optimizer"] = merge(arguments.get("optimizer") or {}, config.pop("optimizer"))
        config["model"] = {**config["model"], "init_args": arguments}
    trainer = dict(config.get("trainer") or {})
    for key, instead in FIXED.items():
        if trainer.get(key) not in (None, 1 if key.startswith("acc") else None):
            raise UsageError(f"trainer.{key} has no effect here; set {instead}")
    if "strategy" in trainer:
        trainer["strategy"] = strategy(trainer["strategy"])
    trainer.pop("job", None)  # of trainer/slurm.yaml; for `speedlit run --executor slurm`
    if (ranks := environment()) and not trainer.get("plugins"):
        trainer["plugins"] = [ranks]
    if not any(trainer.get(key) for key in ("max_epochs", "max_steps", "max_time", "fast_dev_run")):
        trainer["max_epochs"] = 1  # Lightning would take 1,000
    if any(str(callback.get("class_path", "")).endswith("ModelCheckpoint") for callback in trainer.get("callbacks") or [] if isinstance(callback, dict)):
        trainer.setdefault("enable_checkpointing", True)
    return {**config, "trainer": trainer}


def _full_names(value: Any) -> Any:
    if isinstance(value, list):
        return [_full_names(item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)  # YAML 1.1 takes 1e-4 for text
    if not isinstance(value, dict):
        return value
    out = {key: _full_names(item) for key, item in value.items()}
    if isinstance(out.get("class_path"), str):
        out["class_path"] = SHORT.get(out["class_path"]) or plugins().get(out["class_path"], out["class_path"])
    return out


def unknown_keys(config: dict[str, Any]) -> list[str]:
    """One line per key that nothing reads, and per class that can't be imported."""
    out = _strangers(config, TOP, "")
    out += _strangers(config.get("trainer"), inspect.signature(L.Trainer.__init__).parameters, "trainer.")
    blocks = [(name, config.get(name)) for name in ("model", "data")]
    blocks += [(f"trainer.callbacks[{i}]", block) for i, block in enumerate(config["trainer"].get("callbacks") or [])]
    for name, block in blocks:
        out += _block(block, name)
    if isinstance(name := config["trainer"].get("strategy"), str) and name not in (known := ["auto", *StrategyRegistry.available_strategies()]):
        out.append(f"recipe: trainer.strategy is {name}, which nothing knows; {suggestion(name, ['single', 'fsdp', *known])}")
    model = config.get("model")
    arguments = (model.get("init_args") if isinstance(model, dict) else None) or {}
    if isinstance(arguments.get("optimizer"), dict):
        out += _block(arguments["optimizer"], "optimizer")
    for name, kind in NESTED.items():
        out += _strangers(arguments.get(name), kind.__dataclass_fields__, f"model.init_args.{name}.")
    adapter = arguments.get("adapter")
    if isinstance(adapter, dict):
        place = "model.init_args.adapter"
        out += _block(adapter, place) if "class_path" in adapter else _strangers(adapter, QLoRA.__dataclass_fields__, f"{place}.")
    return out


def _block(block: Any, name: str) -> list[str]:
    """Mistakes in one ``class_path`` with ``init_args``."""
    if block is None:
        return [f"recipe: `{name}` is missing; it names a class_path and its init_args"]
    if not isinstance(block, dict) or not isinstance(block.get("class_path"), str):
        return [f"recipe: `{name}` must hold class_path and init_args"]
    out = _strangers(block, ("class_path", "init_args"), f"{name}.")
    module, _, attribute = block["class_path"].rpartition(".")
    try:
        found = getattr(import_module(module), attribute) if module else None
    except Exception as error:  # noqa: BLE001 (other people's code fails in any way it likes)
        return [*out, f"recipe: {name}.class_path {block['class_path']} can't be imported: {failure(error)}{_remedy(error, module)}"]
    if found is None:
        hint = suggestion(block["class_path"], [*SHORT, *plugins()])
        return [*out, f"recipe: {name}.class_path is {block['class_path']!r}; {hint} (or a full path such as package.module.Class)"]
    if not inspect.isclass(found):
        what = "a function" if inspect.isfunction(found) else f"an object of type {type(found).__name__}"
        return [*out, f"recipe: {name}.class_path {block['class_path']} is {what}; it has to be a class"]
    base = BASES.get(name.partition("[")[0])
    if base and not issubclass(found, base):
        return [*out, f"recipe: {name}.class_path {block['class_path']} is no {base.__name__}; name a class that is derived from it"]
    parameters = inspect.signature(found.__init__).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return out
    given = dict(block.get("init_args") or {})
    if name == "model" and "optimizer" in given and "optimizer" not in parameters:
        given.pop("optimizer")
        out.append(
            f"recipe: `optimizer` is for nobody: {block['class_path']} takes no such argument; leave the section out, "
            "or give its __init__ an `optimizer: OptimizerCallable` (of lightning.pytorch.cli), which SpeedModule takes too"
        )
    needed = [p for p, what in parameters.items() if what.default is what.empty and p not in ("self", "params") and p not in given]
    out += [f"recipe: {name}.init_args.{p} is missing, and {attribute} can't do without it (another class_path starts with no init_args)" for p in needed]
    return out + _strangers(given, [p for p in parameters if p != "self"], f"{name}.init_args.")


def _remedy(error: Exception, module: str) -> str:
    """What to do where it is the named file or package itself that isn't found, and not something that it imports."""
    if getattr(error, "name", None) != module.partition(".")[0]:
        return ""
    return "; a file of your own must lie beside the recipe that names it, a package must be installed"


def _strangers(values: Any, known: Any, prefix: str) -> list[str]:
    if not isinstance(values, dict):
        return []
    names = [name for name in known if name not in ("self", "params")]
    return [f"recipe: unknown key `{prefix}{key}`; {suggestion(str(key), names, prefix)}" for key in values if key not in names]


# -- from files and command-line words to one dict ----------------------------------------------------------------------


def override(config: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """``--dotted.key value`` (or ``=value``, or ``+=value`` to append to a list) laid over a recipe.

    ``--model.beta 0.2`` is short for ``--model.init_args.beta 0.2``, and ``--data SFTData`` for its class_path.

    Raises:
        UsageError: a word that is no such pair.
    """
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise UsageError(f"{word!r} is no option; write --key value, for instance --trainer.max_steps 100")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not rest:
                raise UsageError(f"--{key} needs a value")
            text = rest.pop(0)
        config = _put(config, _path(key.removesuffix("+")), nested(plain_value(text), Path.cwd()), append=key.endswith("+"))
    return config


def _path(key: str) -> list[str]:
    parts = key.split(".")
    for index in range(len(parts) - 1, 0, -1):
        if parts[index - 1] in ("model", "data", "optimizer", "adapter") and parts[index] not in ("init_args", "class_path"):
            parts.insert(index, "init_args")
    return parts


def _put(config: dict[str, Any], path: list[str], value: Any, append: bool) -> dict[str, Any]:
    head, *tail = path
    old = config.get(head)
    if tail:
        return {**config, head: _put(old if isinstance(old, dict) else {}, tail, value, append)}
    if isinstance(value, str) and head in ("model", "data", "optimizer", "adapter"):
        value = {"class_path": value}
    if append:
        added = value if isinstance(value, list) else [value]
        return {**config, head: [*(old or []), *({"class_path": item} if isinstance(item, str) else item for item in added)]}
    return {**config, head: merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value}


def set_threads(config: dict[str, Any]) -> None:
    """``threads`` of the recipe, where it is set."""
    if config.get("threads"):
        torch.set_num_threads(int(config["threads"]))
        os.environ["OMP_NUM_THREADS"] = str(config["threads"])
