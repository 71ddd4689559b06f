"""Stage ``revisions``: the teacher criticises the junior's records and mends them; the revisor learns from it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from speedlit.context import Context, Reply, Request
from speedlit.records import Prompt, Record, Revision, read_rows
from speedlit.synthesis.parsing import Rejected, dumps, parse_change
from speedlit.synthesis.quality import Answers
from speedlit.synthesis.schemas import change_schema
from speedlit.synthesis.stages.common import Outputs, ask, exact_sampling, note_quality, prompts_of, structured
from speedlit.synthesis.templates import load_set


def run(ctx: Context) -> None:
    """Write ``revisions.jsonl`` and ``rejected.jsonl`` ({record_id, prompt_id, reason, text})."""
    critique, form = load_set(ctx.config["prompts"]).roles["critique"], ctx.config["revision"]
    prompts = {prompt.id: prompt for prompt in prompts_of(ctx, "root")}
    records = choose(list(read_rows(ctx.inputs["candidates"] / "records.jsonl", Record)), ctx.config["counts"]["revisions"], ctx.config["seed"])
    by_id = {record.id: record for record in records}
    requests, shaped = [], structured(ctx, "teacher")
    for record in records:
        prompt = prompts[record.prompt_id]
        messages = critique.revision(prompt.text, dumps(record.fields, prompt.keys), form)
        schema = change_schema(critique.formats.get(form, ""), prompt.keys, form) if shaped else None
        requests.append(Request(record.id, messages, exact_sampling(ctx, "teacher", record.id, "critique"), schema=schema))
    fates = Answers(ctx.config.get("quality"))
    with Outputs(ctx.out, "revisions", "rejected") as out:
        for request, reply in ask(ctx, "teacher", requests, "revisions: critique"):
            record = by_id[request.id]
            revision, reason, _ = revise(record, prompts[record.prompt_id], reply, form, "critique")
            fates.add(record.kind, reply.provenance.get("model", "critique"), reason or "strict")
            if reason:
                ctx.ledger.reject(reason)
                out.write("rejected", {"record_id": record.id, "prompt_id": record.prompt_id, "reason": reason, "text": reply.text})
                continue
            ctx.ledger.accepted += 1
            out.write("revisions", revision)
    note_quality(ctx, "critique", fates.result())


def choose(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """``count`` distinct records, spread over the prompts: every prompt gives one before any gives a second, in an order of the seed."""
    per_prompt: dict[str, list[tuple[bytes, Record]]] = defaultdict(list)
    for record in {record.id: record for record in records}.values():
        per_prompt[record.prompt_id].append((hashlib.sha256(f"{seed}:{record.id}".encode()).digest(), record))
    ranked = []
    for group in per_prompt.values():
        group.sort(key=lambda pair: pair[0])
        ranked += [(rank, digest, record) for rank, (digest, record) in enumerate(group)]
    ranked.sort(key=lambda row: row[:2])
    return [record for _, _, record in ranked[:count]]


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
