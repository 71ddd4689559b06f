"""What ``dataset`` asks the judge about a sample of the triplets: is the positive the better answer?

The judge is shown a record beside itself with positive and negative exchanged, in an order drawn from the seed. Where it does not prefer
the record as it is, the negative serves as well as the positive: a false negative, or a positive that is none. No prompt of its own is
needed, and a judge that favours a place errs as often one way as the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from speedlit.context import Context, Reply, Request
from speedlit.records import Prompt, Record
from speedlit.synthesis.parsing import Rejected, dumps, parse_judge
from speedlit.synthesis.quality.alarms import Figure, judged
from speedlit.synthesis.quality.judge import UNDECIDED
from speedlit.synthesis.schemas import judge_schema
from speedlit.synthesis.stages.common import ask, exact_sampling, structured
from speedlit.synthesis.templates import derived_random, load_set


def inspect(ctx: Context, rows: Iterable[tuple[Record, Prompt]], count: int) -> dict[str, Any]:
    """Ask about ``count`` triplets. ``false_negatives`` is the share of them whose positive is not preferred; unusable verdicts are left out."""
    base, hits, unusable = load_set(ctx.config["prompts"]).roles["judge"].index_base, 0, 0
    total = 0
    for place, _, reply in ask(ctx, "teacher", questions(ctx, rows), f"{ctx.name}: judge", count):
        preferred = prefers(reply, place, base)
        total += preferred is not None
        hits += preferred is False
        unusable += preferred is None
    found = Figure(hits / total, total) if total else None
    interval = {"false_negatives_95": [round(end, 4) for end in found.interval]} if found else {}
    return {"inspected": total, "unusable": unusable, **interval, **judged({"false_negatives": found}, ctx.config.get("quality"))}


def questions(ctx: Context, rows: Iterable[tuple[Record, Prompt]]) -> Iterator[tuple[int, Request]]:
    """Each record and its counterpart, with the place at which the record itself is shown."""
    templates = load_set(ctx.config["prompts"])
    judge = templates.roles["judge"]
    schema = judge_schema(judge.text, 2, judge.index_base) if structured(ctx, "teacher") else None
    for record, prompt in rows:
        positive, negative = (templates[prompt.kind].key_of(role) for role in ("positive", "negative"))
        assert positive is not None and negative is not None  # the caller leaves kinds without negatives out
        other = {**record.fields, positive: record.fields[negative], negative: record.fields[positive]}
        place = int(derived_random(ctx.config["seed"], record.id, "inspect").random() < 0.5)
        texts = [dumps(fields, prompt.keys) for fields in ((other, record.fields) if place else (record.fields, other))]
        yield place, Request(record.id, judge.judge(prompt.text, texts), exact_sampling(ctx, "teacher", record.id, "inspect"), schema=schema)


def prefers(reply: Reply, place: int, index_base: int) -> bool | None:
    """Whether the judge prefers the candidate at ``place`` of two; None where it gave no usable answer."""
    if reply.error:
        return None
    try:
        found = parse_judge(reply.text, 2, reply.finish_reason, index_base)
    except Rejected as reason:
        return False if str(reason) in UNDECIDED else None
    return found.best == place and (not found.scores or found.scores[place] > found.scores[1 - place])
