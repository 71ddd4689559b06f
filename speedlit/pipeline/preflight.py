"""What can be known to fail before a run spends anything: base models and fit recipes of the training stages still to come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from speedlit.errors import SpeedlitError, UsageError
from speedlit.files import content_id, read_object
from speedlit.pipeline.costs import TEACHER
from speedlit.pipeline.stage import SUCCESS, Stage, config_slice
from speedlit.pipeline.yamlfiles import fit_recipe, merge
from speedlit.synthesis.journal import emptied
from speedlit.synthesis.stages.topics import NONE, read_topics

TRAINED = ("junior", "senior", "revisor", "embedder")


def ahead(stages: Iterable[Stage], plain: Mapping[str, Any], root: Path, until: str | None, start: str | None) -> list[str]:
    """The training stages that a run would do: not finished under this config, or redone from ``start`` on, up to ``until``."""
    found, redo = [], False
    for stage in stages:
        redo = redo or stage.name == start
        if stage.name in TRAINED and (redo or not finished(stage, plain, root)):
            found.append(stage.name)
        if stage.name == until:
            break
    return found


def finished(stage: Stage, plain: Mapping[str, Any], root: Path) -> bool:
    """Whether the stage's folder was finished under this config (its inputs aside)."""
    manifest = stage.folder(root) / "manifest.json"
    if not (stage.folder(root) / SUCCESS).exists() or not manifest.exists():
        return False
    return bool(read_object(manifest, "config")["config"] == content_id(config_slice(plain, stage.keys)))


def check_topics(stage: Stage, plain: Mapping[str, Any], root: Path) -> None:
    """The topics of a run that has yet to read them.

    Raises:
        UsageError: no file is named and no teacher has its own, or the file cannot be used.
    """
    file = plain["topics"]["file"]
    if finished(stage, plain, root):
        return
    if file is None and (plain["teacher"]["embedded"] is None or plain["teacher"]["backend"]):
        raise UsageError(NONE)
    if file is not None:
        next(read_topics(Path(file)))


def check_journal(every: Iterable[Stage], root: Path) -> None:
    """The journal has the answers that finished stages were made from.

    Raises:
        UsageError: it has not a single row: somebody, or a broken copy, has emptied it. One that was moved away is missed by nobody.
    """
    paid = {stage.name: calls_of(stage, root) for stage in every if stage.name in TEACHER}
    if any(paid.values()) and (empty := emptied(root)):
        made = ", ".join(f"{name} {calls:,}" for name, calls in paid.items() if calls)
        raise UsageError(
            f"{empty[0]} is empty, though finished stages have answers of the teacher ({made}): what is asked again would be paid again; "
            "put a copy of the journal in its place, or remove the file to go on without its answers"
        )


def calls_of(stage: Stage, root: Path) -> int:
    """The answers that a finished stage was made from; 0 where it is not finished."""
    manifest = stage.folder(root) / "manifest.json"
    return int(read_object(manifest, "ledger")["ledger"].get("calls") or 0) if manifest.exists() else 0


def preflight(names: Iterable[str], plain: Mapping[str, Any]) -> None:
    """Parse the fit recipes of some training stages with the real parser, and open config and tokenizer of their bases.

    Raises:
        UsageError: every mistake found, each with its key; nothing was asked or trained yet.
    """
    mistakes: list[str] = []
    bases: dict[str, str] = {}
    for name in names:
        key = "embedder_base" if name == "embedder" and plain["embedder_base"] else "base"
        bases[key] = plain[key]
        mistakes += said(partial(check_recipe, plain[name], plain[key]), f"{name}: ")
    for key, base in bases.items():
        mistakes += said(partial(check_base, base), f"{key}: ")
    if mistakes:
        raise UsageError("\n".join(dict.fromkeys(mistakes)))


def said(check: Callable[[], Any], prefix: str) -> list[str]:
    """What a check complains about, a line each; nothing where it passes."""
    try:
        check()
    except SpeedlitError as error:
        return [prefix + line for line in str(error).splitlines()]
    return []


def check_recipe(training: dict[str, Any], base: str) -> None:
    """The recipe as the stage would fill it in, parsed without making anything."""
    from speedlit.pipeline.recipe import Checker, make

    filled = {"model": {"init_args": {"backbone": {"name": base}}}, "data": {"init_args": {"shards": "-"}}}
    make(merge(fit_recipe(training), filled), Checker)


def check_base(name: str) -> None:
    """Weights, config and tokenizer are there; the weights themselves are not read."""
    from speedlit.models.backbone import Backbone, check_weights, load_config

    backbone = Backbone(name)
    place, _ = backbone.chain()
    load_config(place, backbone)
    check_weights(place)
    backbone.tokenizer()
