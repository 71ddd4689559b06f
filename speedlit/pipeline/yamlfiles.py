"""Recipes by name or path: YAML files, nested files, one laid over another, and the words for what is wrong in them."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from speedlit.errors import UsageError

RECIPES = Path(__file__).resolve().parent.parent / "configs"
# Short names in recipes; any importable class may be named by its full path instead.
SHORT = {
    "SFTModule": "speedlit.modules.sft.SFTModule",
    "DPOModule": "speedlit.modules.dpo.DPOModule",
    "EmbeddingModule": "speedlit.modules.embedding.EmbeddingModule",
    "SFTData": "speedlit.data.datamodules.SFTData",
    "PreferenceData": "speedlit.data.datamodules.PreferenceData",
    "ContrastiveData": "speedlit.data.datamodules.ContrastiveData",
    "LoRA": "speedlit.models.adapter.LoRA",
    "QLoRA": "speedlit.models.adapter.QLoRA",
    "AdamW": "torch.optim.AdamW",
    "AdamW8bit": "bitsandbytes.optim.AdamW8bit",
    "MTEB": "speedlit.callbacks.mteb.MTEB",
    "Resume": "speedlit.callbacks.resume.Resume",
    "Metrics": "speedlit.callbacks.metrics.Metrics",
    "FitProgress": "speedlit.callbacks.progress.FitProgress",
    "Requeue": "speedlit.callbacks.requeue.Requeue",
    "Throughput": "speedlit.callbacks.throughput.Throughput",
}


def shipped() -> dict[str, Path]:
    """Every shipped recipe by the name it resolves under (``demo``, ``fit/junior``)."""
    return {str(p.relative_to(RECIPES).with_suffix("")): p for p in sorted(RECIPES.rglob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file behind ``--config``: a path, else a shipped recipe's name.

    Raises:
        UsageError: neither exists; names the nearest shipped recipes.
    """
    path = Path(name)
    if path.is_file():
        return path
    recipes = shipped()
    stem = name.removeprefix("configs/").removesuffix(".yaml")
    if stem in recipes:
        return recipes[stem]
    if path.is_dir():
        raise UsageError(f"--config {name} is a folder; name a YAML file in it")
    near = difflib.get_close_matches(stem, recipes, n=3) or [r for r in recipes if "/" not in r]
    raise UsageError(f"--config {name}: no such file and no shipped recipe of that name; near it: {', '.join(near)} (`speedlit list` shows all)")


CLOCK = re.compile(r"[-+]?\d[\d_]*(:\d\d?)+(\.[\d_]*)?$")


class Loader(yaml.SafeLoader):  # type: ignore[misc]  # pyyaml has no types
    """YAML's safe loader, but a key that stands twice is a mistake: the first value would be lost without a word.

    And ``12:00:00`` is the text that it looks like, as in YAML 1.2; YAML 1.1 has a number there, 43200, which Slurm would take for minutes.
    """

    yaml_implicit_resolvers = {first: [("tag:yaml.org,2002:str", CLOCK), *found] for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()}

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """A mapping as it stands in the file, before merge keys are filled in."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"key `{key.value}` stands there twice; keep one", key.start_mark)
            seen.add(key.value)
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; ``{here}`` in its texts becomes the file's folder, so that a project can be moved and used from anywhere.

    Raises:
        UsageError: unreadable, not YAML (names line and column), or not a mapping.
    """
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506 (a safe loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise UsageError(f"{where} is not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds {'nothing' if value is None else type(value).__name__}, not a mapping of keys to values")
    found: dict[str, Any] = here(value, str(path.resolve().parent))
    return found


def plain_value(text: str) -> Any:
    """What a word of a command line stands for, read as in a YAML file; what is no YAML is its own text."""
    try:
        return yaml.load(text, Loader)  # noqa: S506 (a safe loader)
    except yaml.YAMLError:
        return text


def here(value: Any, folder: str) -> Any:
    """The value with ``{here}`` replaced in each of its texts."""
    if isinstance(value, dict):
        return {key: here(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [here(item, folder) for item in value]
    return value.replace("{here}", folder) if isinstance(value, str) else value


def key_lines(path: Path) -> dict[str, int]:
    """The line of each dotted key of a YAML file that ``read_yaml`` has read."""
    out: dict[str, int] = {}

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            out[f"{prefix}{key.value}"] = key.start_mark.line + 1
            walk(value, f"{prefix}{key.value}.")

    walk(yaml.compose(path.read_text(encoding="utf-8"), Loader), "")
    return out


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``base``; mappings merge key by key, anything else is replaced. A changed ``class_path`` replaces its block."""
    if "class_path" in over and over["class_path"] != base.get("class_path", over["class_path"]):
        return dict(over)
    out = dict(base)
    for key, value in over.items():
        out[key] = merge(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def read_recipe(name: str) -> dict[str, Any]:
    """A recipe by path or shipped name, with nested files (``trainer: ../trainer/cpu.yaml``) read in."""
    path = find_recipe(name)
    found = nested(read_yaml(path), path.parent)
    assert isinstance(found, dict)
    if RECIPES.resolve() not in path.resolve().parents:
        add_code(path.resolve().parent)
    return found


def add_code(folder: Path) -> None:
    """Let a recipe name classes and functions of the files beside it; what is installed keeps its name."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def nested(value: Any, folder: Path) -> Any:
    """Names of YAML files replaced by their content; a name is relative to the file it stands in, or a shipped recipe's."""
    if isinstance(value, dict):
        return {key: nested(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [nested(item, folder) for item in value]
    if not isinstance(value, str) or not value.endswith((".yaml", ".yml")):
        return value
    path = folder / value if (folder / value).is_file() else find_recipe(value)
    if path.read_text(encoding="utf-8").rstrip().endswith("\nnull"):
        return None  # adapter/none.yaml
    return nested(read_yaml(path), path.parent)


def fit_recipe(training: dict[str, Any]) -> dict[str, Any]:
    """The fit config of a training stage: the recipe (its nested files read in) with ``set`` laid over it."""
    recipe = read_recipe(training["recipe"]) if training["recipe"] else {}
    return merge(recipe, training["set"])


def reason(message: str) -> str:
    """Key, value and expectation out of the parser's many lines, in one sentence."""
    keys = list(re.finditer(r'key "([^"]+)"', message))
    tail = message[keys[-1].end() :] if keys else message
    value = re.search(r"(?:Got|Given) value: (.*?)(?:\. Got value.*)?$", tail, re.MULTILINE)
    before = tail[: value.start()] if value else tail
    wanted = [a or b for a, b in re.findall(r"Expected an? (?:<class '(\w+)'>|typing\.Literal\[(.*)\])", before)]
    wanted = [name for name in dict.fromkeys(wanted) if name != "NoneType" or len(set(wanted)) == 1]
    if not keys or not wanted:
        lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
        start = next((i + 1 for i, line in enumerate(lines) if line == "Errors:"), 0)
        section = re.fullmatch(r'Parser key "([^"]+)":?', lines[start]) if lines else None
        if section:
            return f"{section[1]}: {' '.join(lines[start + 1 : start + 2])[:250] or 'wrong value'}"
        return lines[start][:300] if lines else message
    return f"{'.'.join(k[1] for k in keys)} is {value[1][:80] if value else 'wrong'}; expected {' or '.join(wanted)}"


def suggestion(key: str, known: Sequence[str], prefix: str = "") -> str:
    """What the writer of ``key`` may have meant."""
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean `{prefix}{near[0]}`?" if near else f"known here: {', '.join(known)}"


def unknown_keys(values: dict[str, Any], known: dict[str, Any], where: str, prefix: str = "") -> list[str]:
    """One line per key that the schema doesn't have, each with the nearest that it has."""
    out: list[str] = []
    for key, value in values.items():
        if key not in known:
            hint = suggestion(str(key), list(known), prefix)
            out.append(f"{where}: unknown key `{prefix}{key}`; {hint}")
        elif isinstance(value, dict) and isinstance(known[key], dict) and known[key] and key != "set":
            out += unknown_keys(value, known[key], where, f"{prefix}{key}.")
    return out
