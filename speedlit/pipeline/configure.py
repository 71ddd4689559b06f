"""A run's config from its YAML and the words of a command line; all mistakes are told at once, each with its line or key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from speedlit.errors import UsageError
from speedlit.pipeline.config import Embedded, RunConfig, Teacher, Training
from speedlit.pipeline.limits import mistakes, nulls
from speedlit.pipeline.yamlfiles import find_recipe, key_lines, merge, plain_value, read_yaml, reason, unknown_keys


def configure(name: str, rest: list[str], root: str | None = None, topics: str | None = None) -> RunConfig:
    """The run config of a command line.

    Raises:
        UsageError: a word that is no ``--key value``, or a mistake in the config.
    """
    stray = [w for i, w in enumerate(rest) if not w.startswith("--") and (i == 0 or "=" in rest[i - 1] or not rest[i - 1].startswith("--"))]
    if stray:
        raise UsageError(f"unexpected word {stray[0]!r}; overrides are written --key value, such as --counts.seed 100")
    words = [*rest, *(["--root", root] if root else []), *(["--topics.file", topics] if topics else [])]
    return parse(name, words)


def parse(config: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run config with the real parser.

    Args:
        config: path or shipped name.
        overrides: ``--key value`` words that win over the file. ``teacher: NAME``, here or there, is short for ``teacher: {backend: NAME}``.

    Raises:
        UsageError: all mistakes of the file and the command line at once, each with its line or key; or the file cannot be read.
    """
    path = find_recipe(config)
    words, deep = split_deep([re.sub(r"^--teacher(?==|$)", "--teacher.backend", word) for word in overrides])
    values = read_yaml(path)
    if isinstance(values.get("teacher"), str):
        values["teacher"] = {"backend": values["teacher"]}
    known = RunConfig(teacher=Teacher(embedded=Embedded())).plain()  # also the keys of what is off by default
    bad = unknown_keys(values, known, str(path)) + unknown_flags(words, known) + no_mappings(values, known, str(path))
    made, wrong = typed(known_part(values, known), [pair for pair in pairs(words) if known_key(pair[0][2:].partition("=")[0], known)])
    bad += wrong
    for key, value in deep:
        try:
            set_deep(made, key, value)
        except UsageError as error:
            bad.append(str(error))
    told = {word[2:].partition("=")[0]: "command line" for word in words if word.startswith("--")}
    for key in nulls(made):
        bad.append(f"{key} is null; give a value, or leave the key out to take the default")
        default(made, key)  # the comparisons below need numbers
    bad += mistakes(made)
    if bad:
        lines = {**{key: f"{path}:{line}" for key, line in key_lines(path).items()}, **told}
        raise UsageError("\n".join(dict.fromkeys(placed(line, str(path), lines) for line in bad)))
    return made


def typed(values: dict[str, Any], words: Sequence[Sequence[str]]) -> tuple[RunConfig, list[str]]:
    """The config of a file's values and a command line's words, and one line per value of a wrong type; the default stands in for such a value."""
    from jsonargparse import ArgumentError, ArgumentParser, Namespace

    parser = ArgumentParser(exit_on_error=False, parser_mode="yaml")
    parser.add_class_arguments(RunConfig, None)

    def build(values: dict[str, Any], words: Sequence[Sequence[str]]) -> RunConfig:
        namespace = parser.parse_object(values)
        if words:
            namespace = parser.parse_args([word for pair in words for word in pair], namespace=namespace)
        made = parser.instantiate_classes(namespace)
        if not isinstance(made, Namespace):
            raise TypeError("jsonargparse gave no namespace")
        return RunConfig(**{k: getattr(made, k) for k in RunConfig.__dataclass_fields__})

    def fault(values: dict[str, Any], words: Sequence[Sequence[str]] = ()) -> str | None:
        try:
            build(values, words)
        except (ArgumentError, TypeError, ValueError) as error:
            return reason(str(error))
        return None

    if fault(values, words) is None:
        return build(values, words), []
    bad: list[str] = []
    good: dict[str, Any] = {}  # one value at a time, so that each tells its own mistake
    for branch in branches(values):
        line = fault(branch)
        if line is None:
            good = merge(good, branch)
        else:
            bad.append(line)
    kept = []
    for pair in words:
        line = fault({}, [pair])
        if line is None:
            kept.append(pair)
        else:
            bad.append(f"command line: {line}")
    left = fault(good, kept)
    if left is not None:  # values that are right one by one, wrong together
        raise UsageError("\n".join([*bad, left]))
    return build(good, kept), bad


def branches(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The nested mapping taken apart: one branch per value; what lies under ``set`` or ``prices`` stays whole."""
    out: list[dict[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value and key not in ("set", "prices"):
            out += [{key: branch} for branch in branches(value)]
        else:
            out.append({key: value})
    return out


def known_part(values: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The values whose keys the schema has; sections that hold a plain value are left out."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known or (isinstance(known[key], dict) and not isinstance(value, dict) and not (key == "embedded" and value is None)):
            continue
        deeper = isinstance(value, dict) and isinstance(known[key], dict) and known[key] and key != "set"
        out[key] = known_part(value, known[key]) if deeper else value
    return out


def known_key(key: str, known: Any) -> bool:
    """Whether the schema has this dotted key."""
    for part in key.split("."):
        if isinstance(known, dict) and not known:
            return True  # a free mapping, such as prices
        if not isinstance(known, dict) or part not in known:
            return False
        known = known[part]
    return True


def pairs(words: Sequence[str]) -> list[list[str]]:
    """``--key value`` and ``--key=value`` words, each option with what belongs to it."""
    out: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not out:
            out.append([word])
        else:
            out[-1].append(word)
    return out


def default(config: Any, key: str) -> None:
    """Give a dotted key the value that its dataclass starts with."""
    *path, name = key.split(".")
    for part in path:
        config = getattr(config, part)
    setattr(config, name, getattr(type(config)(), name))


def placed(line: str, file: str, places: dict[str, str]) -> str:
    """A mistake with the line of the file, or the command line, where its key stands; else with the file's name."""
    if line.startswith(("command line:", "--")):
        return line
    named = re.search(r"unknown key `([^`]+)`", line)
    text = line.removeprefix(f"{file}: ")
    key = named[1] if named else text.split(" ")[0].rstrip(":")
    while key and key not in places:
        key = key.rpartition(".")[0]
    return f"{places.get(key, file)}: {text}"


def split_deep(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The words of a command line without those below a ``set``, and these as (key, value): they belong to a fit recipe, not to this schema.

    Raises:
        UsageError: such a key has no value.
    """
    plain: list[str] = []
    deep: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if not word.startswith("--") or ".set." not in key:
            plain.append(word)
        elif equals or rest:
            deep.append((key[2:], value if equals else rest.pop(0)))
        else:
            raise UsageError(f"{word} needs a value")
    return plain, deep


def set_deep(config: RunConfig, key: str, text: str) -> None:
    """Lay ``junior.set.trainer.max_steps`` = ``3`` over the ``set`` of its training stage.

    Raises:
        UsageError: the key does not start with a training stage.
    """
    name, _, path = key.partition(".set.")
    training = getattr(config, name, None)
    if not isinstance(training, Training):
        raise UsageError(f"--{key}: {name} is no training stage; there are junior, senior, revisor, embedder")
    value = plain_value(text)
    for part in reversed(path.split(".")):
        value = {part: value}
    training.set = merge(training.set, value)


def no_mappings(values: dict[str, Any], known: dict[str, Any], where: str) -> list[str]:
    """One line per section that holds a plain value."""
    return [
        f"{where}: {key} is {str(value)[:80]}; expected keys and values ({', '.join(known[key])})"
        for key, value in values.items()
        if isinstance(known.get(key), dict) and not isinstance(value, dict)
    ]


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
        out += unknown_keys(branch, known, f"--{key}")
    return out
