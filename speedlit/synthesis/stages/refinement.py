"""Stage ``refinement``: the revisor goes once over the senior's records. An unusable answer leaves the record as it was.

With ``revision_guard: likelihood`` a revision also has to be more likely to the senior than the record was. The senior draws at
temperature 1, so its own slips are less likely than what it usually writes; an edit that it finds less likely is more often wrong.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from speedlit.context import Context, Request
from speedlit.records import Prompt, Record, Revision, read_rows
from speedlit.synthesis.parsing import dumps
from speedlit.synthesis.quality import Answers, Measures
from speedlit.synthesis.schemas import change_schema
from speedlit.synthesis.stages.common import Outputs, ask, exact_sampling, make_record, note_quality, prompts_of, structured
from speedlit.synthesis.stages.revisions import revise
from speedlit.synthesis.templates import load_set

BLOCK = 4096  # answers that are applied, and guarded, together
Made = tuple[Record, Revision, str, str]  # record, its revision, why it fell back or "", the answer


def run(ctx: Context) -> None:
    """Write ``revisions.jsonl``, ``records.jsonl`` (one per record of the senior) and ``rejected.jsonl`` (unusable answers)."""
    templates, form, allowed = load_set(ctx.config["prompts"]), ctx.config["revision"], ctx.config.get("revise_fields")
    prompts = {prompt.id: prompt for prompt in prompts_of(ctx, "synthetic", "test", "validation")}
    records = list(read_rows(ctx.inputs["synthesis"] / "records-senior.jsonl", Record))
    requests, shaped = [], structured(ctx, "revisor")
    for record in records:
        prompt = prompts[record.prompt_id]
        messages = templates.roles["revise"].revision(prompt.text, dumps(record.fields, prompt.keys), form)
        schema = change_schema(templates.roles["revise"].formats.get(form, ""), prompt.keys, form) if shaped else None
        requests.append(Request(record.id, messages, exact_sampling(ctx, "revisor", record.id, "revise"), schema=schema))
    by_id = {record.id: record for record in records}
    guard = ctx.config.get("revision_guard") == "likelihood"
    answers = ask(ctx, "revisor", requests, "refinement: revisor")
    statuses: Counter[str] = Counter()
    fates, measures = Answers(ctx.config.get("quality")), Measures(ctx.config.get("quality"))
    with Outputs(ctx.out, "revisions", "records", "rejected") as out:
        while block := list(itertools.islice(answers, BLOCK)):
            made = []
            for request, reply in block:
                record = by_id[request.id]
                revision, reason, guarded = revise(record, prompts[record.prompt_id], reply, form, "revisor", allowed, lenient=guard)
                fates.add(record.kind, reply.provenance.get("model", "revisor"), reason or "strict")
                statuses["guarded_edits"] += guarded
                made.append((record, revision, reason, reply.text))
            for record, revision, reason, text in less_likely(ctx, made, prompts) if guard else made:
                prompt = prompts[record.prompt_id]
                statuses[revision.status] += 1
                if reason:
                    ctx.ledger.reject(reason)
                    out.write("rejected", {"record_id": record.id, "prompt_id": prompt.id, "reason": reason, "text": text})
                ctx.ledger.accepted += 1
                out.write("revisions", revision)
                parsed_by = "revised" if revision.status == "revised" else record.parsed_by
                refined = make_record(prompt, templates[prompt.kind], revision.after, record.generation_id, parsed_by, "refined", record.index)
                measures.add(refined, prompt)
                out.write("records", refined)
    ctx.ledger.notes["status"] = dict(statuses)
    note_quality(ctx, "refined", measures.result(), fates.result())


def less_likely(ctx: Context, made: Sequence[Made], prompts: Mapping[str, Prompt]) -> list[Made]:
    """Take back every revision that the senior finds less likely than the record it wrote itself."""
    changed = [i for i, (_, revision, _, _) in enumerate(made) if revision.status == "revised"]
    asked = [prompts[made[i][0].prompt_id] for i in changed]
    texts = [dumps(fields, p.keys) for name in ("before", "after") for p, i in zip(asked, changed, strict=True) for fields in [getattr(made[i][1], name)]]
    assert ctx.likelihood is not None
    found = ctx.likelihood("senior", [p.text for p in asked] * 2, texts) if changed else []
    out = list(made)
    for place, i in enumerate(changed):
        if found[place + len(changed)] <= found[place]:
            record, revision, _, text = made[i]
            out[i] = (record, replace(revision, after=revision.before, edits=[], status="fallback", reason="less_likely"), "less_likely", text)
    return out
