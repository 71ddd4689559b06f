"""Stage ``revisions``: the teacher criticises the junior's records and mends them; the revisor learns from it."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from speedlit.context import Context, Reply, Request
from speedlit.records import Prompt, Record, Revision
from speedlit.synthesis.hashing import Places, order_key
from speedlit.synthesis.lines import Lines, number, out_of_order, rows, spelled
from speedlit.synthesis.parsing import Rejected, dumps, parse_change
from speedlit.synthesis.quality import Answers
from speedlit.synthesis.schemas import change_schema
from speedlit.synthesis.stages.common import Outputs, ask, exact_sampling, note_quality, prompt_rows, structured
from speedlit.synthesis.templates import RoleTemplate, load_set


def run(ctx: Context) -> None:
    """Write ``revisions.jsonl`` and ``rejected.jsonl`` ({record_id, prompt_id, reason, text})."""
    critique, form = load_set(ctx.config["prompts"]).roles["critique"], ctx.config["revision"]
    fates = Answers(ctx.config.get("quality"))
    with Outputs(ctx.out, "revisions", "rejected") as out:
        path = ctx.inputs["candidates"] / "records.jsonl"
        chosen = choose(path, ctx.config["counts"]["revisions"], ctx.config["seed"])
        for (record, prompt), _, reply in ask(ctx, "teacher", questions(ctx, path, chosen, critique), "revisions: critique", len(chosen)):
            revision, reason, _ = revise(record, prompt, reply, form, "critique")
            fates.add(record.kind, reply.provenance.get("model", "critique"), reason or "strict")
            if reason:
                ctx.ledger.reject(reason)
                out.write("rejected", {"record_id": record.id, "prompt_id": record.prompt_id, "reason": reason, "text": reply.text})
                continue
            ctx.ledger.accepted += 1
            out.write("revisions", revision)
    note_quality(ctx, "critique", fates.result())


def questions(ctx: Context, path: Path, chosen: Places, critique: RoleTemplate) -> Iterator[tuple[tuple[Record, Prompt], Request]]:
    """The chosen records, each with its prompt and what the critic is asked."""
    form, shaped = ctx.config["revision"], structured(ctx, "teacher")
    found = [(number(row["id"]), start) for start, row in prompt_rows(ctx, "root")]
    ids, places = np.array(sorted(found), np.uint64).reshape(-1, 2).T
    with Lines(path) as records, Lines(ctx.inputs["tasks"] / "prompts.jsonl") as prompts:
        for start in chosen.tolist():
            record = Record.from_json(records[start])
            place = np.searchsorted(ids, np.uint64(number(record.prompt_id)))
            if place == len(ids) or spelled(int(ids[place])) != record.prompt_id:
                raise out_of_order(str(path), record.prompt_id)
            prompt = Prompt.from_json(prompts[int(places[place])])
            messages = critique.revision(prompt.text, dumps(record.fields, prompt.keys), form)
            schema = change_schema(critique.formats.get(form, ""), prompt.keys, form) if shaped else None
            yield (record, prompt), Request(record.id, messages, exact_sampling(ctx, "teacher", record.id, "critique"), schema=schema)


def choose(path: Path, count: int, seed: int) -> Places:
    """Where ``count`` distinct records begin in their file, spread over the prompts: every prompt gives one before any gives a second, in
    an order of the seed."""
    ranks, keys, places = array("Q"), array("Q"), array("Q")
    for _, group in itertools.groupby(rows(path), key=lambda pair: pair[1]["prompt_id"]):
        starts = {row["id"]: start for start, row in group}
        ordered = sorted((order_key(seed, name), start) for name, start in starts.items())
        for rank, (key, start) in enumerate(ordered):
            ranks.append(rank)
            keys.append(key)
            places.append(start)
    order = np.lexsort((np.array(keys, np.uint64), np.array(ranks, np.uint64)))
    return np.array(places, np.int64)[order][:count]


def revise(
    record: Record, prompt: Prompt, reply: Reply, form: str, source: str, allowed: Sequence[str] | None = None, lenient: bool = False
) -> tuple[Revision, str, int]:
    """Apply an answer to a record; ``lenient`` passes over edits that find nothing to replace.

    Returns:
        The revision (a fallback that keeps the record where the answer is unusable), the reason of the fallback or "", and how many
        edits of protected fields were left out.
    """
    before = {key: record.fields[key] for key in prompt.keys}
    try:
        if reply.error:
            raise Rejected(f"no_answer:{reply.error}")
        change = parse_change(reply.text, before, prompt.keys, form, reply.finish_reason, allowed, lenient)
    except Rejected as reason:
        return Revision(record.id, prompt.id, record.kind, source, before, before, [], "fallback", str(reason)), str(reason), 0
    status = "revised" if change.after != before else "kept"
    return Revision(record.id, prompt.id, record.kind, source, before, change.after, change.edits, status, change.reason), "", change.guarded
