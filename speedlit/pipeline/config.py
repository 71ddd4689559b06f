"""The schema of a run's YAML. A signature is the schema is the help text: jsonargparse reads these dataclasses."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from speedlit.errors import UsageError

RECIPES = Path(__file__).resolve().parent.parent / "configs"


@dataclass
class Topics:
    """Where topics come from.

    Args:
        file: text file with one path a line (``Arts/Movies/Titles``); null asks the embedded teacher for its world's topics.
        depth: deeper paths lose their middle levels (paper D.1).
    """

    file: str | None = None
    depth: int = 4


@dataclass
class Tasks:
    """Brainstorming and splits.

    Args:
        per_topic: tasks kept per topic and kind (the paper keeps 1: its Table 3).
        test: share of the groups (cells) held out for the quality and evaluation tables.
        validation: share held out for choosing settings.
    """

    per_topic: int = 1
    test: float = 0.02
    validation: float = 0.01


@dataclass
class Counts:
    """How many prompts each stage gets.

    Args:
        seed: prompts that the teacher writes (paper: 25,000).
        root: prompts that the junior answers for ranking and revision.
        candidates: answers per root prompt (5 in the paper's worked example).
        preferences: root prompts whose candidates the teacher ranks (paper: 10,000).
        revisions: root records that the teacher criticises (paper: 10,000).
        synthesis: prompts that the senior answers (paper: 1.15 million).
        validation: prompts held out for choosing settings.
        test: prompts held out for the tables.
        test_samples: answers per held-out prompt and generator.
        embedder: triplets per data source in the comparison of sources; null takes as many as the smallest source has.
    """

    seed: int = 25_000
    root: int = 10_000
    candidates: int = 5
    preferences: int = 10_000
    revisions: int = 10_000
    synthesis: int = 1_150_000
    validation: int = 500
    test: int = 500
    test_samples: int = 1
    embedder: int | None = None


@dataclass
class Embedded:
    """The noise of the embedded teacher's three roles, as the share of its answers that are spoilt."""

    writer_noise: float = 0.03
    judge_noise: float = 0.0
    critic_noise: float = 0.0
    world_seed: int = 0


@dataclass
class Teacher:
    """The teacher behind an OpenAI-compatible endpoint. The key is read from ``OPENAI_API_KEY`` only.

    Args:
        model: model name sent with each request.
        base_url: endpoint; null honours ``OPENAI_BASE_URL`` and falls back to the openai library's own default.
        embedded: settings of the embedded teacher, started by the run itself unless an endpoint is named; null: never.
        concurrency: requests in flight.
        timeout: seconds for one request, answer included.
        retries: attempts after a passing failure.
        temperature: of the writer; judge and critic always use 0.
        max_tokens: longest answer.
    """

    model: str = "gpt-4o-2024-05-13"
    base_url: str | None = None
    embedded: Embedded | None = None
    concurrency: int = 16
    timeout: float = 120.0
    retries: int = 6
    temperature: float = 1.0
    max_tokens: int = 1024


@dataclass
class Generator:
    """How trained generators are sampled (paper App. B: temperature 1, top_p 1, at most 800 new tokens).

    Args:
        temperature: of junior, senior and control; the revisor decodes greedily.
        top_p: nucleus.
        max_tokens: longest answer, in tokens.
        batch_size: prompts per forward pass.
        processes: worker processes, one torch thread each; 1 generates in this process.
        dtype: float32 or bfloat16.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 800
    batch_size: int = 64
    processes: int = 1
    dtype: str = "float32"


@dataclass
class Training:
    """One training stage: a shipped or own ``fit`` recipe and what differs from it.

    Args:
        recipe: name or path of a fit YAML.
        set: nested keys laid over the recipe.
    """

    recipe: str = ""
    set: dict[str, Any] = field(default_factory=dict)


@dataclass
class Filters:
    """What the dataset stage drops.

    Args:
        exact: identical normalised texts.
        minhash_threshold: near-duplicates at or above this Jaccard similarity; null keeps them.
        ngram: length in words of the shared run that counts as contamination with evaluation texts; null switches it off.
    """

    exact: bool = True
    minhash_threshold: float | None = 0.8
    ngram: int | None = 13


@dataclass
class Comparison:
    """Which data sources train an embedder of their own, and with how many seeds.

    Args:
        sources: among junior, senior, refined, teacher.
        seeds: order seeds; 0 fits none.
        processes: fits at a time, one torch thread each.
    """

    sources: list[str] = field(default_factory=list)
    seeds: int = 0
    processes: int = 1


@dataclass
class Evaluation:
    """What the embedder is measured on.

    Args:
        tasks: mteb task names; empty with the embedded teacher takes tasks rendered from held-out cells of its world.
        data: folder with local copies (see ``speedlit evaluate --data``).
    """

    tasks: list[str] = field(default_factory=list)
    data: str | None = None


@dataclass
class RunConfig:
    """The whole loop.

    Args:
        name: recipe's name; a root belongs to one name, seed, base and prompt set.
        root: folder of the run.
        seed: every draw derives from it.
        base: base model of the generators.
        embedder_base: base model of the embedder; null takes ``base``.
        prompts: prompt set by name (``paper``, ``mini``) or folder.
        revision: what a revision looks like: ``full`` record or ``edits``.
        revise_fields: JSON keys that the revisor may change; null allows all.
        control: also train the best-of-n control (the senior's data, steps and learning rate, but beta 0).
        threads: torch threads of this process; null leaves torch's default.
    """

    name: str = "speed"
    root: str = "runs/speed"
    seed: int = 0
    base: str = "meta-llama/Meta-Llama-3-8B"
    embedder_base: str | None = None
    prompts: str = "paper"
    revision: str = "full"
    revise_fields: list[str] | None = None
    control: bool = True
    threads: int | None = None
    topics: Topics = field(default_factory=Topics)
    tasks: Tasks = field(default_factory=Tasks)
    counts: Counts = field(default_factory=Counts)
    teacher: Teacher = field(default_factory=Teacher)
    sampling: Generator = field(default_factory=Generator)
    filters: Filters = field(default_factory=Filters)
    junior: Training = field(default_factory=lambda: Training("fit/junior"))
    senior: Training = field(default_factory=lambda: Training("fit/senior"))
    revisor: Training = field(default_factory=lambda: Training("fit/revisor"))
    embedder: Training = field(default_factory=lambda: Training("fit/embedder"))
    comparison: Comparison = field(default_factory=Comparison)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def plain(self) -> dict[str, Any]:
        """Nested plain dicts, as stages read them."""
        return asdict(self)


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


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        UsageError: unreadable, not YAML (names line and column), or not a mapping.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise UsageError(f"{where} is not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds {'nothing' if value is None else type(value).__name__}, not a mapping of keys to values")
    return value


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
    return found


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


def parse(config: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run config with the real parser.

    Args:
        config: path or shipped name.
        overrides: ``--key value`` words that win over the file.

    Raises:
        UsageError: unknown keys (with the nearest real one), wrong types, unreadable file.
    """
    from jsonargparse import ArgumentError, ArgumentParser, Namespace

    path = find_recipe(config)
    values = read_yaml(path)
    mistakes = unknown_keys(values, RunConfig().plain(), str(path)) + unknown_flags(overrides, RunConfig().plain())
    if mistakes:
        raise UsageError("\n".join(mistakes))
    parser = ArgumentParser(exit_on_error=False, parser_mode="yaml")
    parser.add_class_arguments(RunConfig, None)
    try:
        namespace = parser.parse_object(values)
        if overrides:
            namespace = parser.parse_args(list(overrides), namespace=namespace)
        made = parser.instantiate_classes(namespace)
    except (ArgumentError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: {tidy(str(error))}") from error
    if not isinstance(made, Namespace):
        raise TypeError("jsonargparse gave no namespace")
    return check(RunConfig(**{k: getattr(made, k) for k in RunConfig.__dataclass_fields__}), path)


def tidy(message: str) -> str:
    """Key and reason out of a parser's several lines, in one sentence."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    key = re.search(r'key "([^"]+)"', message)
    reason = next((line for line in reversed(lines) if "xpected" in line or "not" in line), lines[-1] if lines else message)
    reason = re.sub(r"<class '(\w+)'>", r"\1", reason).replace(". Got value:", " but got")
    return (f"{key.group(1)}: {reason}" if key else reason)[:400]


def unknown_flags(words: Sequence[str], known: dict[str, Any]) -> list[str]:
    """One line per ``--dotted.key`` that the schema doesn't have."""
    out = []
    for word in words:
        if not word.startswith("--"):
            continue
        key = word[2:].split("=", 1)[0]
        branch: dict[str, Any] = {}
        for part in reversed(key.split(".")):
            branch = {part: branch}
        if key.split(".set.")[0] == key:  # below `set` any key is the fit recipe's own
            out += unknown_keys(branch, known, f"--{key}")
    return out


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


def suggestion(key: str, known: Sequence[str], prefix: str = "") -> str:
    """What the writer of ``key`` may have meant."""
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean `{prefix}{near[0]}`?" if near else f"known here: {', '.join(known)}"


def check(config: RunConfig, path: Path) -> RunConfig:
    """Values that no type can forbid.

    Raises:
        UsageError: a count below its minimum, a share outside 0..1, an unknown choice; all mistakes at once.
    """
    bad: list[str] = []
    for name, value in asdict(config.counts).items():
        least = 2 if name == "candidates" else 0 if name in ("validation", "test") else 1
        if value is not None and value < least:
            bad.append(f"counts.{name} is {value}; it must be at least {least}")
    for name, share in (("test", config.tasks.test), ("validation", config.tasks.validation)):
        if not 0 <= share < 1:
            bad.append(f"tasks.{name} is {share}; a share lies between 0 and 1")
    if config.tasks.test + config.tasks.validation >= 1:
        bad.append("tasks.test and tasks.validation together leave nothing to train on")
    if config.tasks.per_topic < 1:
        bad.append(f"tasks.per_topic is {config.tasks.per_topic}; it must be at least 1")
    if config.topics.depth < 2:
        bad.append(f"topics.depth is {config.topics.depth}; it must be at least 2")
    if config.revision not in ("full", "edits"):
        bad.append(f"revision is {config.revision!r}; choose full or edits")
    unknown = set(config.comparison.sources) - {"junior", "senior", "refined", "teacher"}
    if unknown:
        bad.append(f"comparison.sources has {', '.join(sorted(unknown))}; choose among junior, senior, refined, teacher")
    if config.teacher.concurrency < 1:
        bad.append(f"teacher.concurrency is {config.teacher.concurrency}; it must be at least 1")
    if bad:
        raise UsageError("\n".join(f"{path}: {line}" for line in bad))
    return config
