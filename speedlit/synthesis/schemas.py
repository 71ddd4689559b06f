"""JSON schemas of what each role answers, read off its template: for servers and decoders that can keep an answer to a shape.

Only what all of them understand is used: objects with all keys needed, texts, whole numbers out of a list, arrays. Strings of an object
are meant to hold words; strings of an array may be empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TEXT = {"type": "string"}
Schema = Mapping[str, Any]


def record_schema(keys: Sequence[str]) -> Schema:
    """One sample: its keys in writing order."""
    return obj({key: TEXT for key in keys})


def judge_schema(text: str, count: int, index_base: int) -> Schema:
    """A verdict over ``count`` candidates; the scores only where the judge's prompt ``text`` asks for them."""
    number = {"type": "integer", "enum": list(range(index_base, index_base + count))}
    scores = {"scores": array({"type": "number"}, count)} if '"scores"' in text else {}
    return obj({**reason(text), "best": number, "worst": number, **scores})


def change_schema(text: str, keys: Sequence[str], form: str) -> Schema:
    """A critic's or a revisor's answer: ``edits`` as [key, old, new], or the ``full`` revision; the reason where the prompt asks for it."""
    change = {"edits": array(array(TEXT, 3))} if form == "edits" else {"revision": record_schema(keys)}
    return obj({**reason(text), **change})


def reason(text: str) -> dict[str, Schema]:
    """The key of the reason, where a prompt's text asks for one."""
    return {"reason": TEXT} if '"reason"' in text else {}


def obj(properties: Mapping[str, Schema]) -> Schema:
    """An object with exactly these keys."""
    return {"type": "object", "properties": dict(properties), "required": list(properties), "additionalProperties": False}


def array(items: Schema, count: int | None = None) -> Schema:
    """A list of ``count`` items, or of any number."""
    return {"type": "array", "items": items, **({} if count is None else {"minItems": count, "maxItems": count})}
