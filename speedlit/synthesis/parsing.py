"""Reading what models wrote: strict JSON, then mended JSON, then a check against the template. Nothing is ever evaluated.

Every refusal is a short reason code that ends up in a manifest, such as ``not_json`` or ``missing_key:label``. The content of a text
is never edited here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DECODER = json.JSONDecoder(strict=False)
REFUSAL = re.compile(r"^\W*(i['’]?m (very )?sorry|i am sorry|sorry,|i can(no|['’])t|i am unable|i'm unable|as an ai\b|unfortunately, i)", re.IGNORECASE)
SCAN_LIMIT = 64  # how many opening brackets are tried as the start of the answer


class Rejected(Exception):
    """An answer that cannot be used; its text is the reason code. Internal: stages count it, users never see it raised."""


@dataclass(frozen=True)
class ParsedRecord:
    """The fields of a sample in the template's order, and how they were got: ``strict`` or ``repaired``."""

    fields: dict[str, str]
    parsed_by: str


@dataclass(frozen=True)
class Judgement:
    """A judge's answer; ``best`` and ``worst`` count from 0 in the order shown, ``scores`` is empty where the judge gave none."""

    best: int
    worst: int
    scores: list[float] = field(default_factory=list)
    reason: str = ""


@dataclass(frozen=True)
class Change:
    """A usable revision: the fields afterwards, the edits that lead there, and the critic's reason."""

    after: dict[str, str]
    edits: list[list[str]]
    reason: str = ""
    guarded: int = 0  # edits left out because they touch a protected field


def dumps(fields: Mapping[str, str], keys: Sequence[str]) -> str:
    """A sample as one line of JSON with its keys in writing order: what a writer is trained to write."""
    return json.dumps({key: fields[key] for key in keys}, ensure_ascii=False)


def decode(text: str, kind: type, finish_reason: str = "stop", wanted: Sequence[str] = ()) -> tuple[Any, str]:
    """Find the first JSON value of type ``kind`` (dict or list) in an answer.

    Args:
        wanted: keys of which the object must have one: any other object is a draft, an example, or a part of a damaged answer.

    Returns:
        The value and ``strict`` or ``repaired``; a value without a wanted key only where there is no better one.

    Raises:
        Rejected: ``empty``, ``truncated`` (the token limit cut it), ``refusal`` or ``not_json``.
    """
    opening = "{" if kind is dict else "["
    position, other = text.find(opening), None
    for _ in range(SCAN_LIMIT):
        if position < 0:
            break
        try:
            value, _end = DECODER.raw_decode(text, position)
            if not wanted or any(key in value for key in wanted):
                return value, "strict"
            other = other or value
        except json.JSONDecodeError as error:
            if finish_reason == "length" and _open_ended(error):  # a whole value inside the cut one is not the answer
                raise Rejected("truncated") from error
        except RecursionError:
            pass
        position = text.find(opening, position + 1)
    if other is None:
        return _repair(text, kind, opening, finish_reason), "repaired"
    return _better(other, text, kind, opening, finish_reason, wanted)


def _better(other: Any, text: str, kind: type, opening: str, finish_reason: str, wanted: Sequence[str]) -> tuple[Any, str]:
    """The mended value where it has a wanted key, else the strict one that lacks them."""
    try:
        value = _repair(text, kind, opening, finish_reason)
    except Rejected:
        return other, "strict"
    return (value, "repaired") if any(key in value for key in wanted) else (other, "strict")


def _open_ended(error: json.JSONDecodeError) -> bool:
    """Whether the text was JSON up to its end."""
    return error.msg.startswith("Unterminated string") or error.pos >= len(error.doc.rstrip())


def _repair(text: str, kind: type, opening: str, finish_reason: str) -> Any:
    if not text.strip():
        raise Rejected("truncated" if finish_reason == "length" else "empty")
    if finish_reason == "length":  # mending would close a half-written sentence as if it were whole
        raise Rejected("truncated")
    start = text.find(opening)
    if start < 0:
        raise Rejected("refusal" if REFUSAL.match(text) else "not_json")
    import json_repair  # imported late: most answers never need it

    try:
        value = json_repair.loads(text[start:])
    except (ValueError, RecursionError) as error:
        raise Rejected("not_json") from error
    if not isinstance(value, kind) or not value:
        raise Rejected("not_json")
    return value


def check_fields(value: Mapping[str, Any], keys: Sequence[str]) -> dict[str, str]:
    """The ``keys`` of ``value`` as non-empty texts, in that order; other keys are left out.

    Raises:
        Rejected: ``missing_key:K``, ``wrong_type:K`` or ``empty_field:K``.
    """
    for key in keys:
        if key not in value:
            raise Rejected(f"missing_key:{key}")
        if not isinstance(value[key], str):
            raise Rejected(f"wrong_type:{key}")
        if not value[key].strip():
            raise Rejected(f"empty_field:{key}")
    return {key: value[key] for key in keys}


def parse_record(text: str, keys: Sequence[str], finish_reason: str = "stop") -> ParsedRecord:
    """Read one sample.

    Raises:
        Rejected: with a reason code.
    """
    value, parsed_by = decode(text, dict, finish_reason, keys)
    return ParsedRecord(check_fields(value, keys), parsed_by)


def parse_judge(text: str, count: int, finish_reason: str = "stop", index_base: int = 0) -> Judgement:
    """Read a judge's answer over ``count`` candidates.

    Raises:
        Rejected: also ``index_missing``, ``index_out_of_range`` and ``best_equals_worst``.
    """
    value, _ = decode(text, dict, finish_reason, ("best", "worst"))
    best, worst = (_index(value.get(name), count, index_base) for name in ("best", "worst"))
    if best == worst:
        raise Rejected("best_equals_worst")
    return Judgement(best, worst, _scores(value.get("scores"), count), _text(value.get("reason")))


def _index(value: Any, count: int, base: int) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*\d+\s*", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Rejected("index_missing")
    if not 0 <= value - base < count:
        raise Rejected("index_out_of_range")
    return value - base


def _scores(value: Any, count: int) -> list[float]:
    if not isinstance(value, list) or len(value) != count or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in value):
        return []
    return [float(v) for v in value]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def parse_brainstorm(text: str, finish_reason: str = "stop") -> list[str]:
    """Read a list of task sentences: trimmed, distinct, in the order given.

    Raises:
        Rejected: no list of texts can be read.
    """
    value, _ = decode(text, list, finish_reason)
    tasks = [" ".join(item.split()) for item in value if isinstance(item, str)]
    tasks = list(dict.fromkeys(task for task in tasks if task))
    if not tasks:
        raise Rejected("no_tasks")
    return tasks


def apply_edits(before: Mapping[str, str], edits: Sequence[Sequence[str]], lenient: bool = False) -> dict[str, str]:
    """Apply ``[field, find, replace]`` one after the other; each replaces the first place where ``find`` stands.

    Args:
        lenient: pass over an edit that finds nothing to replace, as long as another one does.

    Raises:
        Rejected: ``edit_unknown_field``, ``edit_not_found`` or ``empty_field:K``.
    """
    after = dict(before)
    missed = 0
    for name, find, replace in edits:
        if name not in after and not lenient:
            raise Rejected("edit_unknown_field")
        if name not in after or not find or find not in after[name]:
            missed += 1
            if not lenient or missed == len(edits):
                raise Rejected("edit_not_found")
            continue
        after[name] = after[name].replace(find, replace, 1)
    return check_fields(after, list(before))


def parse_change(
    text: str,
    before: Mapping[str, str],
    keys: Sequence[str],
    form: str = "edits",
    finish_reason: str = "stop",
    allowed: Sequence[str] | None = None,
    lenient: bool = False,
) -> Change:
    """Read a critic's or a revisor's answer and apply it to ``before``.

    Args:
        form: what was asked for; the other form is understood too, because models mix them up.
        allowed: fields that may change, or None for all; edits of others are left out and counted.
        lenient: pass over edits that find nothing to replace.

    Raises:
        Rejected: the answer cannot be used; the caller keeps the record as it was.
    """
    value, _ = decode(text, dict, finish_reason, ("edits", "revision"))
    before = {key: before[key] for key in keys}
    wanted, other = ("edits", "revision") if form == "edits" else ("revision", "edits")
    name = wanted if wanted in value else other
    if name == "edits" and "edits" in value:
        edits = _edits(value["edits"])
    elif "revision" in value:
        after = _revision(value["revision"], keys)
        edits = [[key, before[key], after[key]] for key in keys if before[key] != after[key]]
    else:
        raise Rejected(f"missing_key:{wanted}")
    kept = [edit for edit in edits if allowed is None or edit[0] in allowed or edit[0] not in before]
    after = apply_edits(before, kept, lenient)
    return Change(after, [edit for edit in kept if edit[1] != edit[2]], _text(value.get("reason")), len(edits) - len(kept))


def _edits(value: Any) -> list[list[str]]:
    if not isinstance(value, list) or any(not isinstance(e, list) or len(e) != 3 or not all(isinstance(part, str) for part in e) for e in value):
        raise Rejected("edit_shape")
    return value


def _revision(value: Any, keys: Sequence[str]) -> dict[str, str]:
    if isinstance(value, str):  # some teachers send the object as a string
        value, _ = decode(value, dict)
    if not isinstance(value, dict):
        raise Rejected("wrong_type:revision")
    return check_fields(value, keys)
