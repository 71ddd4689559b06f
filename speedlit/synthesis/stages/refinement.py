"""Stage ``refinement``: the revisor goes once over the senior's records. An unusable answer leaves the record as it was.

With ``revision_guard: likelihood`` a revision also has to be more likely to the senior than the record was. The senior draws at
temperature 1, so its own slips are less likely than what it usually writes; an edit that it finds less likely is more often wrong.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from speedlit.context import Context, Request
from speedlit.records import Prompt, Record, Revision, read_rows
from speedlit.synthesis.lines import count_lines, with_prompts
from speedlit.synthesis.parsing import dumps
from speedlit.synthesis.quality import Answers, Measures, Trend
from speedlit.synthesis.schemas import change_schema
from speedlit.synthesis.stages.common import Outputs, ask, exact_sampling, make_record, note_quality, prompts_of, structured
from speedlit.synthesis.stages.revisions import revise
from speedlit.synthesis.stages.synthesis import DATA, HELD_OUT
from speedlit.synthesis.templates import RoleTemplate, load_set

BLOCK = 4096  # answers that are applied, and guarded, together
SENIOR = "records-senior.jsonl"
Made = tuple[Record, Prompt, Revision, str, str]  # record, its prompt and revision, why it fell back or "", the answer


def run(ctx: Context) -> None:
    """Write ``revisions.jsonl``, ``records.jsonl`` (one per record of the senior) and ``rejected.jsonl`` (unusable answers)."""
    templates, form, allowed = load_set(ctx.config["prompts"]), ctx.config["revision"], ctx.config.get("revise_fields")
    guard = ctx.config.get("revision_guard") == "likelihood"
    answers = ask(ctx, "revisor", questions(ctx, templates.roles["revise"]), "refinement: revisor", count_lines(ctx.inputs["synthesis"] / SENIOR))
    statuses: Counter[str] = Counter()
    levels = ctx.config.get("quality")
    fates, measures, trend = Answers(levels), Measures(levels), Trend(levels)
    with Outputs(ctx.out, "revisions", "records", "rejected") as out:
        while block := list(itertools.islice(answers, BLOCK)):
            made = []
            for (record, prompt), _, reply in block:
                revision, reason, guarded = revise(record, prompt, reply, form, "revisor", allowed, lenient=guard)
                fates.add(record.kind, reply.provenance.get("model", "revisor"), reason or "strict")
                statuses["guarded_edits"] += guarded
                made.append((record, prompt, revision, reason, reply.text))
            for record, prompt, revision, reason, text in less_likely(ctx, made) if guard else made:
                statuses[revision.status] += 1
                if reason:
                    ctx.ledger.reject(reason)
                    out.write("rejected", {"record_id": record.id, "prompt_id": prompt.id, "reason": reason, "text": text})
                ctx.ledger.accepted += 1
                out.write("revisions", revision)
                parsed_by = "revised" if revision.status == "revised" else record.parsed_by
                refined = make_record(prompt, templates[prompt.kind], revision.after, record.generation_id, parsed_by, "refined", record.index)
                measures.add(refined, prompt)
                trend.add("senior", record)
                trend.add("refined", refined)
                out.write("records", refined)
    ctx.ledger.notes["status"] = dict(statuses)
    note_quality(ctx, "refined", measures.result(), fates.result())
    note_quality(ctx, "refined after senior", trend.result("senior", "refined"))


def questions(ctx: Context, revise: RoleTemplate) -> Iterator[tuple[tuple[Record, Prompt], Request]]:
    """Each record of the senior, with its prompt and what the revisor is asked."""
    path, form, shaped = ctx.inputs["synthesis"] / SENIOR, ctx.config["revision"], structured(ctx, "revisor")
    prompts = itertools.chain(prompts_of(ctx, *DATA), prompts_of(ctx, *HELD_OUT))  # the order in which they were sampled
    for record, prompt in with_prompts(read_rows(path, Record), prompts, str(path)):
        messages = revise.revision(prompt.text, dumps(record.fields, prompt.keys), form)
        schema = change_schema(revise.formats.get(form, ""), prompt.keys, form) if shaped else None
        yield (record, prompt), Request(record.id, messages, exact_sampling(ctx, "revisor", record.id, "revise"), schema=schema)


def less_likely(ctx: Context, made: Sequence[Made]) -> list[Made]:
    """Take back every revision that the senior finds less likely than the record it wrote itself."""
    changed = [(i, prompt, revision) for i, (_, prompt, revision, _, _) in enumerate(made) if revision.status == "revised"]
    texts = [dumps(getattr(revision, name), prompt.keys) for name in ("before", "after") for _, prompt, revision in changed]
    assert ctx.likelihood is not None
    found = ctx.likelihood("senior", [prompt.text for _, prompt, _ in changed] * 2, texts) if changed else []
    out = list(made)
    for (i, _, revision), before, after in zip(changed, found, found[len(changed) :], strict=False):
        if after <= before:
            record, prompt, _, _, text = made[i]
            out[i] = (record, prompt, replace(revision, after=revision.before, edits=[], status="fallback", reason="less_likely"), "less_likely", text)
    return out
