"""What a stage is: a name, the stages it reads, the config keys it depends on, and a function that fills its folder.

A finished stage is a folder with ``manifest.json`` and, written last, ``_SUCCESS``. The manifest says from which config and
which inputs it was made; a stage whose manifest still matches is skipped, any other is made anew, and a half-written one goes
on where it was interrupted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speedlit import __version__
from speedlit.context import Context
from speedlit.errors import UsageError
from speedlit.files import content_id, read_object, remove, sha256_file, write_json
from speedlit.pipeline.yamlfiles import fit_recipe
from speedlit.synthesis.templates import PACKAGED as PROMPTS
from speedlit.synthesis.templates import prompt_files

SUCCESS = "_SUCCESS"
PACKAGED = Path(__file__).resolve().parent.parent / "offline" / "base"


@dataclass(frozen=True)
class Stage:
    """One step of the loop.

    Args:
        number: position, from 1.
        name: as in ``--until NAME``.
        needs: the stages whose folders it reads.
        keys: dotted config keys that change its result.
        run: fills ``ctx.out``.
        sharded: whether ``--shard i/n`` makes sense for it.
    """

    number: int
    name: str
    needs: tuple[str, ...]
    keys: tuple[str, ...]
    run: Callable[[Context], None]
    sharded: bool = False

    @property
    def synthesis(self) -> bool:
        """Whether the stage makes records (rather than models or tables)."""
        return self.name in ("topics", "tasks", "seed", "candidates", "preferences", "revisions", "synthesis", "refinement", "dataset")

    def folder(self, root: Path) -> Path:
        """``<root>/stages/NN-name``."""
        return root / "stages" / f"{self.number:02d}-{self.name}"


def config_slice(config: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """The values of dotted ``keys``; a missing branch counts as null."""
    out: dict[str, Any] = {}
    for key in keys:
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        out[key] = fit_recipe(dict(value)) if isinstance(value, Mapping) and "recipe" in value else value  # a changed recipe file counts
        if key in ("base", "embedder_base") and isinstance(value, str):
            out[f"{key} files"] = model_mark(value)
        if key == "prompts" and isinstance(value, str):
            out.update(prompt_marks(value))
    return out


def prompt_marks(name: str) -> dict[str, Any]:
    """Digests of the files of a prompt set's own folders: a changed file redoes what it was used for. Packaged files carry versions."""
    return {f"prompts {stem}": sha256_file(path) for stem, path in sorted(prompt_files(name).items()) if not path.is_relative_to(PROMPTS)}


def model_mark(name: str) -> Any:
    """What tells a model folder from another under the same name; None for a hub id, which names its content itself."""
    folder = PACKAGED if name == "speedlit:base" else Path(name)
    if (folder / "RECIPE.json").is_file():
        return sha256_file(folder / "RECIPE.json")  # holds the digests of all other files
    if not folder.is_dir():
        return None
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(folder.iterdir()) if path.is_file()]


def fingerprint(stage: Stage, config: Mapping[str, Any], root: Path, stages: Mapping[str, Stage]) -> dict[str, Any]:
    """From what the stage is made: the hash of its config keys and of each input's manifest.

    An input's manifest holds the time it took, so a redone input counts as a new one even where its records are the same.
    """
    inputs = {name: sha256_file(stages[name].folder(root) / "manifest.json") for name in stage.needs}
    return {"config": content_id(config_slice(config, stage.keys)), "inputs": inputs}


def state(stage: Stage, made_from: dict[str, Any], root: Path) -> str:
    """``done``, ``half`` (interrupted, same making), ``new``, ``stale: why``, or ``damaged: why`` (a finished file is another now)."""
    folder = stage.folder(root)
    begun = folder / "begun.json"
    if (folder / SUCCESS).exists() and (folder / "manifest.json").exists():
        manifest = read_object(folder / "manifest.json", "parts", "config", "inputs")
        wrong = [key for key in ("parts", "inputs", "marks") if not isinstance(manifest.get(key, {}), dict)]
        if wrong:
            raise UsageError(f"{folder / 'manifest.json'} is damaged ({wrong[0]} is no JSON object); remove it, or its folder, to go on")
        missing = [p for p in manifest["parts"] if not (folder / p).exists()]
        if missing:
            return f"stale: its file {missing[0]} is missing"
        if manifest["config"] != made_from["config"]:
            return "stale: its config changed"
        changed = sorted(k for k, v in made_from["inputs"].items() if manifest["inputs"].get(k) != v)
        if changed:
            return f"stale: its input {', '.join(changed)} changed"
        other = altered(folder, manifest)
        return f"damaged: {folder / other} is not what the stage wrote (its sha256 differs from the manifest's)" if other else "done"
    if begun.exists():
        return "half" if read_object(begun) == made_from else "stale: it was interrupted under another config or other inputs"
    return "new"


def altered(folder: Path, manifest: Mapping[str, Any]) -> str:
    """The first part whose content is no longer the manifest's, or ""; only parts whose size or time changed are read again."""
    marks = manifest.get("marks", {})
    for part, digest in manifest["parts"].items():
        if mark(folder / part) != marks.get(part) and sha256_file(folder / part) != digest:
            return str(part)
    return ""


def mark(path: Path) -> list[int]:
    """Size and time of the last change: equal marks mean equal content, unless somebody takes pains."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def begin(stage: Stage, made_from: dict[str, Any], root: Path, fresh: bool) -> Path:
    """Open the stage's folder; ``fresh`` empties it first."""
    folder = stage.folder(root)
    if fresh:
        (folder / SUCCESS).unlink(missing_ok=True)  # first, so that a crash while emptying leaves no finished-looking folder
        remove(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "begun.json").exists():
        write_json(folder / "begun.json", made_from)
    return folder


def finish(stage: Stage, made_from: dict[str, Any], ctx: Context, seconds: float) -> dict[str, Any]:
    """Write the manifest and, last, the success mark."""
    folder = ctx.out
    parts = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and is_part(p, folder))
    manifest = {
        "stage": stage.name,
        **made_from,
        "seconds": round(seconds, 3),
        "finished": round(time.time(), 3),
        "code": __version__,
        "ledger": ctx.ledger.to_json(),
        "parts": {p: sha256_file(folder / p) for p in parts},
        "marks": {p: mark(folder / p) for p in parts},
    }
    write_json(folder / "manifest.json", manifest)
    (folder / "begun.json").unlink(missing_ok=True)
    write_json(folder / SUCCESS, {"pid": os.getpid()})
    return manifest


def is_part(path: Path, folder: Path) -> bool:
    """Whether a file is a result: not the pipeline's own marks, not a working file (``work/``, ``checkpoints/``, hidden names)."""
    relative = path.relative_to(folder)
    working = any(p in ("work", "checkpoints") or p.startswith(".") for p in relative.parts)
    return not working and relative.as_posix() not in ("manifest.json", "begun.json", SUCCESS)
