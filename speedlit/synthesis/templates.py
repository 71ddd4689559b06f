"""Prompt sets: folders of YAML files, one per task kind and role. A new task kind is one more file and nothing else (docs/task-kinds.md).

Placeholders are ``{name}``; any other brace is text, so JSON in a template needs no doubling. Knobs and weights follow section 4 of
the SPEED paper (arXiv 2410.18634). All chance of one prompt comes from one generator derived from (seed, task id, use, index).
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from speedlit import plugins
from speedlit.errors import UsageError

PACKAGED = Path(__file__).parent / "prompts"
DEFAULT_SET = "paper"
ROLES = ("brainstorm", "judge", "critique", "revise")
FIELD_ROLES = ("query", "positive", "negative")
PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


def derived_random(*parts: Any) -> random.Random:
    """A generator that depends on ``parts`` only: the same on every machine, in every order of work."""
    return random.Random(hashlib.sha256(repr(parts).encode()).digest())


def derived_seed(*parts: Any) -> int:
    """A seed of 31 bits that depends on ``parts`` only (servers take no larger ones)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big") >> 1


def fill(text: str, values: Mapping[str, Any]) -> str:
    """Put ``values`` in the place of ``{name}`` in one pass: braces inside the values stay text."""
    return PLACEHOLDER.sub(lambda match: str(values[match[1]]) if match[1] in values else match[0], text)


@dataclass(frozen=True)
class Knob:
    """A property that is drawn for each prompt: one of ``values`` by ``weights``, with ``probability`` of being drawn at all."""

    values: Sequence[Any]
    weights: Sequence[float] | None = None
    probability: float = 1.0

    def draw(self, rng: random.Random) -> Any | None:
        """A value, or None where the knob is left out. Always uses up the same amount of chance."""
        kept = rng.random() < self.probability
        value = rng.choices(self.values, self.weights)[0]
        return value if kept else None


@dataclass(frozen=True)
class Line:
    """One rule of a prompt, shown with ``probability`` and only when all of its knobs were drawn."""

    text: str
    probability: float = 1.0


@dataclass(frozen=True)
class Template:
    """The prompt of one task kind.

    Attributes:
        fields: JSON key -> ``query``, ``positive`` or ``negative``, in the order in which they are written.
        input: ``task`` (a brainstormed sentence) or ``topic`` (the topic itself).
        share: how much of the data is of this kind, relative to the others.
        instruction: fixed instruction of the embedder, or None for the task's own text.
        brainstorm: how tasks of this kind are asked for (what, rule, examples, shuffle), where brainstorm.yaml does not say it.
        symmetric: query and documents are texts of one sort (the instruction goes to both sides).
        in_batch_negatives: other rows' positives may serve as negatives.
    """

    name: str
    kind: str
    text: str
    fields: Mapping[str, str]
    version: int = 1
    share: float = 1.0
    input: str = "task"
    symmetric: bool = False
    in_batch_negatives: bool = True
    instruction: str | None = None
    brainstorm: Mapping[str, Any] | None = None
    system: str | None = None
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    lines: Sequence[Line] = ()
    shuffle: bool = False

    @property
    def ref(self) -> str:
        """Name that prompts carry, such as ``paper/retrieval@1``."""
        return f"{self.name}@{self.version}"

    def key_of(self, role: str) -> str | None:
        """The JSON key that holds ``role``, or None (matching kinds have no negative)."""
        return next((key for key, value in self.fields.items() if value == role), None)

    def instruction_for(self, task: str) -> str:
        """The embedder's instruction for a task text."""
        return self.instruction if self.instruction is not None else task

    def render(self, task: str, topic: str, rng: random.Random) -> tuple[list[dict[str, str]], dict[str, Any]]:
        """Draw the knobs and write the messages.

        Returns:
            The chat messages, and the knobs that were drawn by name.
        """
        drawn = {name: knob.draw(rng) for name, knob in self.knobs.items()}
        knobs = {name: value for name, value in drawn.items() if value is not None}
        shown = [line.text for line in self.lines if rng.random() < line.probability]
        shown = [fill(text, {**knobs, "task": task, "topic": topic}) for text in shown if self._undrawn(text, knobs) == set()]
        if self.shuffle:
            rng.shuffle(shown)
        values = {**knobs, "task": task, "topic": topic, "lines": "\n".join(shown)}
        system = [{"role": "system", "content": fill(self.system, values)}] if self.system else []
        return [*system, {"role": "user", "content": fill(self.text, values).rstrip("\n")}], knobs

    def _undrawn(self, text: str, drawn: Mapping[str, Any]) -> set[str]:
        return {name for name in PLACEHOLDER.findall(text) if name in self.knobs and name not in drawn}


@dataclass(frozen=True)
class RoleTemplate:
    """The prompt of a role that is no writer of samples: brainstorm, judge, critique or revise."""

    name: str
    text: str
    version: int = 1
    system: str | None = None
    index_base: int = 0
    formats: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def ref(self) -> str:
        """Name with version."""
        return f"{self.name}@{self.version}"

    def messages(self, **values: Any) -> list[dict[str, str]]:
        """The chat messages with ``values`` put in."""
        system = [{"role": "system", "content": fill(self.system, values)}] if self.system else []
        return [*system, {"role": "user", "content": fill(self.text, values).rstrip("\n")}]

    def brainstorm(self, kind: str, topic: str, rng: random.Random) -> list[dict[str, str]]:
        """Ask for tasks of one kind within a topic."""
        spec = self.kinds[kind]
        examples = list(spec.get("examples", ()))
        if spec.get("shuffle"):
            rng.shuffle(examples)
        shown = "\n".join(f"- {example}" for example in examples)
        return self.messages(topic=topic, kind=kind, what=spec.get("what", kind), rule=spec.get("rule", ""), examples=shown)

    def judge(self, prompt: str, candidates: Sequence[str]) -> list[dict[str, str]]:
        """Ask for the best and the worst of numbered candidates."""
        numbers = range(self.index_base, self.index_base + len(candidates))
        blocks = "\n".join(f"<candidate {number}>\n{text}\n</candidate {number}>" for number, text in zip(numbers, candidates, strict=True))
        return self.messages(prompt=prompt, candidates=blocks, count=len(candidates), first=numbers[0], last=numbers[-1])

    def revision(self, prompt: str, record: str, form: str) -> list[dict[str, str]]:
        """Ask for the revision of one record as ``edits`` or in ``full``."""
        return self.messages(prompt=prompt, record=record, format=self.formats.get(form, "").strip("\n"))


class PromptSet:
    """All templates of one folder; roles that the folder lacks are taken from the packaged ``paper`` set."""

    def __init__(self, name: str, templates: Mapping[str, Template], roles: Mapping[str, RoleTemplate]) -> None:
        self.name, self.templates, self.roles = name, dict(templates), dict(roles)

    def __getitem__(self, kind: str) -> Template:
        return self.templates[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self.templates)

    def keys(self, kind: str) -> list[str]:
        """JSON keys of a kind in writing order.

        Raises:
            UsageError: the set has no such kind.
        """
        if kind not in self.templates:
            raise UsageError(f"prompt set {self.name} has no task kind {kind!r}, only {', '.join(self.templates)}: use the set that the data were written with")
        return list(self.templates[kind].fields)

    def shares(self, total: int) -> dict[str, int]:
        """Split ``total`` among the kinds in proportion to their shares (largest remainder, ties to the earlier kind)."""
        weight = sum(t.share for t in self.templates.values())
        exact = {kind: total * t.share / weight for kind, t in self.templates.items()}
        counts = {kind: int(value) for kind, value in exact.items()}
        order = sorted(exact, key=lambda kind: counts[kind] - exact[kind])
        for kind in order[: total - sum(counts.values())]:
            counts[kind] += 1
        return counts


@lru_cache(maxsize=8)
def load_set(name: str = DEFAULT_SET) -> PromptSet:
    """Load a prompt set by packaged name (``paper``, ``mini``), by folder or by a plug-in's name; ``paper+FOLDER`` lays a folder's files over a set's.

    Raises:
        UsageError: there is no such set, or a file in it is wrong (names file and key).
    """
    files = prompt_files(name)
    fallback = {role: PACKAGED / DEFAULT_SET / f"{role}.yaml" for role in ROLES}
    roles = {role: _role(files.pop(role, fallback[role])) for role in ROLES}
    templates = {t.kind: t for t in sorted((_template(path) for path in files.values()), key=lambda t: (-t.share, t.kind))}
    if not templates:
        raise UsageError(f"prompts: {name} has no template of a task kind (a file such as retrieval.yaml)")
    asked = roles["brainstorm"].kinds
    for kind, template in templates.items():
        if template.input == "task" and template.brainstorm is None and kind not in asked:
            where = files[kind].parent / "brainstorm.yaml"
            raise UsageError(f"{where}: kinds lacks {kind!r}: add it there, or `brainstorm: {{what, rule, examples}}` or `input: topic` to {files[kind]}")
    own = {kind: template.brainstorm for kind, template in templates.items() if template.brainstorm is not None}
    roles["brainstorm"] = replace(roles["brainstorm"], kinds={**asked, **own})
    return PromptSet("+".join(folder.name for folder in folders(name)), templates, roles)


def prompt_files(name: str) -> dict[str, Path]:
    """The YAML files of a prompt set by stem; of two with one stem the later folder's counts.

    Raises:
        UsageError: a part of the name is no prompt set.
    """
    return {path.stem: path for folder in folders(name) for path in sorted(folder.glob("*.yaml"))}


def folders(name: str) -> list[Path]:
    """The folders that a prompt set's name stands for.

    Raises:
        UsageError: a part of the name is no prompt set.
    """
    found = []
    for part in [name] if Path(name).is_dir() else [part.strip() for part in name.split("+")]:
        folder = PACKAGED / part if part and "/" not in part and (PACKAGED / part).is_dir() else Path(part)
        if part and not folder.is_dir():
            folder = plugins.folder(part) or folder
        if not part or not folder.is_dir():
            known = ", ".join(sorted(p.name for p in PACKAGED.iterdir() if p.is_dir()))
            raise UsageError(f"prompts: {part!r} is neither a packaged prompt set ({known}) nor a folder nor a plug-in")
        found.append(folder)
    return found


TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("kind", "text", "instruction", "system"), str),
    **dict.fromkeys(("shuffle", "symmetric", "in_batch_negatives"), bool),
    **{"fields": dict, "knobs": dict, "lines": list, "share": (int, float), "brainstorm": dict},
}
TEMPLATE_KEYS = ("version", *TYPES, "input")
ASKING: dict[str, type | tuple[type, ...]] = {"what": str, "rule": str, "examples": list, "shuffle": bool}
GIVEN = {
    "brainstorm": ("topic", "kind", "what", "rule", "examples"),
    "judge": ("prompt", "candidates", "count", "first", "last"),
    **dict.fromkeys(("critique", "revise"), ("prompt", "record", "format")),
}


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path}: expected keys such as kind, text, fields")
    return data


def _check_keys(path: Path, data: Mapping[str, Any], known: Sequence[str], needed: Sequence[str], where: str = "") -> None:
    for key in needed:
        if key not in data:
            raise UsageError(f"{path}: key {where}{key} is missing")
    for key in data:
        if key not in known:
            raise UsageError(f"{path}: unknown key {where}{key}; known are {', '.join(known)}")


def _typed(path: Path, data: Mapping[str, Any], types: Mapping[str, type | tuple[type, ...]], where: str = "") -> None:
    for key, kind in types.items():
        if data.get(key) is not None and not isinstance(data[key], kind):
            names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise UsageError(f"{path}: {where}{key} must be {names}, not {type(data[key]).__name__}")


def _asking(path: Path, where: str, data: Any) -> None:
    """Check how tasks of one kind are asked for."""
    if not isinstance(data, dict):
        raise UsageError(f"{path}: {where} must have keys such as what, rule, examples")
    _check_keys(path, data, list(ASKING), ("what",), f"{where}.")
    _typed(path, data, ASKING, f"{where}.")


def _knob(path: Path, name: str, data: Any) -> Knob:
    if not isinstance(data, dict):
        raise UsageError(f"{path}: knobs.{name} must have a key `values`")
    _check_keys(path, data, ("values", "weights", "probability"), ("values",), f"knobs.{name}.")
    values, weights = data["values"], data.get("weights")
    if not isinstance(values, list) or not values:
        raise UsageError(f"{path}: knobs.{name}.values must be a list with at least one value")
    if weights is not None and (not isinstance(weights, list) or len(weights) != len(values)):
        raise UsageError(f"{path}: knobs.{name}.weights must be a list of {len(values)} numbers, one per value")
    return Knob(tuple(values), tuple(weights) if weights else None, float(data.get("probability", 1.0)))


def _line(path: Path, data: Any) -> Line:
    if isinstance(data, str):
        return Line(data)
    if not isinstance(data, dict):
        raise UsageError(f"{path}: lines must hold texts or {{text, probability}}")
    _check_keys(path, data, ("text", "probability"), ("text",), "lines.")
    return Line(data["text"], float(data.get("probability", 1.0)))


def _template(path: Path) -> Template:
    data = _read(path)
    _check_keys(path, data, TEMPLATE_KEYS, ("kind", "fields", "text"))
    _typed(path, data, TYPES)
    if data["kind"] != path.stem:
        raise UsageError(f"{path}: kind is {data['kind']!r}, but the file is named {path.stem}.yaml: the two must agree")
    roles = list(data["fields"].values())
    if any(role not in FIELD_ROLES for role in roles) or roles.count("query") != 1 or roles.count("positive") != 1 or roles.count("negative") > 1:
        raise UsageError(f"{path}: fields must map keys to one query, one positive and at most one negative")
    if data.get("input", "task") not in ("task", "topic"):
        raise UsageError(f"{path}: input must be task or topic, not {data['input']!r}")
    if data.get("brainstorm") is not None:
        _asking(path, "brainstorm", data["brainstorm"])
    knobs = {name: _knob(path, name, knob) for name, knob in (data.get("knobs") or {}).items()}
    lines = tuple(_line(path, line) for line in data.get("lines") or ())
    for name in PLACEHOLDER.findall("\n".join([data["text"], data.get("system") or "", *(line.text for line in lines)])):
        if name not in {*knobs, "task", "topic", "lines"}:
            raise UsageError(f"{path}: placeholder {{{name}}} is neither task, topic, lines nor a knob")
    plain = {key: value for key, value in data.items() if key not in ("kind", "text", "fields", "knobs", "lines")}
    return Template(f"{path.parent.name}/{path.stem}", data["kind"], data["text"], data["fields"], knobs=knobs, lines=lines, **plain)


def _role(path: Path) -> RoleTemplate:
    data = _read(path)
    known = ("kind", "version", "text", "system", "index_base", "formats", "kinds")
    _check_keys(path, data, known, ("kind", "text"))
    _typed(path, data, {"text": str, "system": str, "formats": dict, "kinds": dict, "index_base": int})
    for kind, asking in (data.get("kinds") or {}).items():
        _asking(path, f"kinds.{kind}", asking)
    given = GIVEN[path.stem]
    for name in PLACEHOLDER.findall(data["text"] + (data.get("system") or "")):
        if name not in given:
            raise UsageError(f"{path}: unknown placeholder {{{name}}}; known are {', '.join(given)}")
    plain = {key: data[key] for key in ("version", "system", "index_base", "formats", "kinds") if key in data}
    return RoleTemplate(f"{path.parent.name}/{path.stem}", data["text"], **plain)
