"""Stage ``refinement``: the revisor goes once over the senior's records. An unusable answer leaves the record as it was."""

from __future__ import annotations

from collections import Counter

from speedlit.context import Context, Request
from speedlit.records import Record, read_rows
from speedlit.synthesis.parsing import dumps
from speedlit.synthesis.stages.common import Outputs, ask, exact_sampling, make_record, prompts_of
from speedlit.synthesis.stages.revisions import revise
from speedlit.synthesis.templates import load_set


def run(ctx: Context) -> None:
    """Write ``revisions.jsonl``, ``records.jsonl`` (one per record of the senior) and ``rejected.jsonl`` (unusable answers)."""
    templates, form, allowed = load_set(ctx.config["prompts"]), ctx.config["revision"], ctx.config.get("revise_fields")
    prompts = {prompt.id: prompt for prompt in prompts_of(ctx, "synthetic", "test", "validation")}
    records = list(read_rows(ctx.inputs["synthesis"] / "records-senior.jsonl", Record))
    requests = []
    for record in records:
        prompt = prompts[record.prompt_id]
        messages = templates.roles["revise"].revision(prompt.text, dumps(record.fields, prompt.keys), form)
        requests.append(Request(record.id, messages, exact_sampling(ctx, "revisor", record.id, "revise")))
    by_id = {record.id: record for record in records}
    statuses: Counter[str] = Counter()
    with Outputs(ctx.out, "revisions", "records", "rejected") as out:
        for request, reply in ask(ctx, "revisor", requests, "refinement: revisor"):
            record = by_id[request.id]
            prompt = prompts[record.prompt_id]
            revision, reason, guarded = revise(record, prompt, reply, form, "revisor", allowed)
            statuses.update({revision.status: 1, "guarded_edits": guarded})
            if reason:
                ctx.ledger.reject(reason)
                out.write("rejected", {"record_id": record.id, "prompt_id": prompt.id, "reason": reason, "text": reply.text})
            ctx.ledger.accepted += 1
            out.write("revisions", revision)
            parsed_by = "revised" if revision.status == "revised" else record.parsed_by
            out.write("records", make_record(prompt, templates[prompt.kind], revision.after, record.generation_id, parsed_by, "refined", record.index))
    ctx.ledger.notes["status"] = dict(statuses)
