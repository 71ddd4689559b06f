"""A config as YAML in which every key says what it means: the text is that of the docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import yaml
from docstring_parser import parse as parse_docstring

WIDTH = 140
Explain = Callable[[tuple[str, ...]], str]  # the path of a key -> what it means, or ""


def dump(values: Mapping[str, Any], explain: Explain, blocks: Callable[[tuple[str, ...]], bool] = lambda path: True) -> str:
    """YAML of nested mappings with comments.

    Args:
        values: plain values.
        explain: what the key at a path means; places in lists are part of the path.
        blocks: whether the mapping at a path is written key by key; else it is one value.
    """
    return "\n".join(_lines(values, (), explain, blocks)) + "\n"


def _lines(values: Mapping[str, Any], path: tuple[str, ...], explain: Explain, blocks: Callable[[tuple[str, ...]], bool]) -> Iterator[str]:
    for key, value in values.items():
        place, said = (*path, str(key)), " ".join(explain((*path, str(key))).split())
        if isinstance(value, Mapping) and value and blocks(place):
            yield from _with_comment(f"{scalar(key)}:", said)
            yield from ("  " + line for line in _lines(value, place, explain, blocks))
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            yield from _with_comment(f"{scalar(key)}:", said)
            for number, item in enumerate(value):
                inner = list(_lines(item, (*place, str(number)), explain, blocks)) if isinstance(item, Mapping) else [scalar(item)]
                first = next(i for i, line in enumerate(inner) if not line.startswith("#"))
                yield from ("  " + line for line in inner[:first])
                yield from ("- " + line if i == 0 else "  " + line for i, line in enumerate(inner[first:]))
        else:
            yield from _with_comment(f"{scalar(key)}: {scalar(value)}", said)


def _with_comment(line: str, said: str) -> Iterator[str]:
    """The comment behind its line where there is room, else above it."""
    if not said:
        yield line
    elif len(line) + len(said) + 4 <= WIDTH:
        yield f"{line}  # {said}"
    else:
        yield from (f"# {part}" for part in textwrap.wrap(said, WIDTH - 8, break_long_words=False, break_on_hyphens=False))
        yield line


def scalar(value: Any) -> str:
    """One value on one line."""
    style = '"' if isinstance(value, str) and "\n" in value else None
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False, default_style=style)
    return text.removesuffix("...\n").strip()


def meanings(cls: Any) -> dict[str, str]:
    """Parameter -> what the docstrings of a class, and of those it inherits from, say about it."""
    found: dict[str, str] = {}
    for part in inspect.getmro(cls):
        own = vars(part).get("__init__")
        for text in (part.__doc__, own.__doc__ if own else None):
            for parameter in parse_docstring(text or "").params:
                for name in parameter.arg_name.split(","):
                    found.setdefault(name.strip(), short(parameter.description or ""))
    return found


def short(text: str) -> str:
    """A description without markup; of a long one the first sentence."""
    text = re.sub(r":\w+:`~?([^`<]*)[^`]*`", r"\1", " ".join(text.split("\n\n")[0].split())).replace("`", "").removesuffix(".")
    text = re.sub(r"[.,]? \(?[Dd]efault: .*$", "", text)  # of the class: a recipe's parser may have another
    return text if len(text) <= 300 else re.split(r"(?<=[a-z)])\. ", text)[0]


def headline(cls: Any) -> str:
    """The first sentence of a class's docstring."""
    return short(parse_docstring(cls.__doc__ or "").short_description or "")


def of_dataclass(config: Any) -> Explain:
    """Explains the keys of nested dataclasses."""
    said: dict[tuple[str, ...], str] = {}

    def walk(value: Any, path: tuple[str, ...]) -> None:
        texts = meanings(type(value))
        for item in fields(value):
            inner = getattr(value, item.name)
            section = headline(type(inner)) if is_dataclass(inner) else ""
            said[(*path, item.name)] = texts.get(item.name) or section
            if is_dataclass(inner):
                walk(inner, (*path, item.name))

    walk(config, ())
    return lambda path: said.get(path, "")
