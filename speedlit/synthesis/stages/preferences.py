"""Stage ``preferences``: the teacher names the best and the worst of the junior's answers to one prompt.

Only answers that parse are shown, in an order drawn from the seed, since judges favour places.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from speedlit.context import Context, Request
from speedlit.records import Preference, Prompt, Record, read_rows
from speedlit.synthesis.parsing import Rejected, dumps, parse_judge
from speedlit.synthesis.stages.common import Outputs, ask, exact_sampling, prompts_of
from speedlit.synthesis.templates import derived_random, load_set


def run(ctx: Context) -> None:
    """Write ``preferences.jsonl`` and ``rejected.jsonl`` ({prompt_id, reason, text})."""
    judge = load_set(ctx.config["prompts"]).roles["judge"]
    prompts = {prompt.id: prompt for prompt in prompts_of(ctx, "root")}
    with Outputs(ctx.out, "preferences", "rejected") as out:
        shown = candidates(ctx, prompts, out)
        requests = []
        for prompt_id, records in shown.items():
            prompt = prompts[prompt_id]
            messages = judge.judge(prompt.text, [dumps(record.fields, prompt.keys) for record in records])
            requests.append(Request(prompt_id, messages, exact_sampling(ctx, "teacher", prompt_id, "judge")))
        for request, reply in ask(ctx, "teacher", requests, "preferences: judge"):
            try:
                if reply.error:
                    raise Rejected(f"no_answer:{reply.error}")
                preference = rank(request.id, shown[request.id], reply.text, reply.finish_reason, judge.index_base)
            except Rejected as reason:
                ctx.ledger.reject(str(reason))
                out.write("rejected", {"prompt_id": request.id, "reason": str(reason), "text": reply.text})
                continue
            ctx.ledger.accepted += 1
            out.write("preferences", preference)


def candidates(ctx: Context, prompts: dict[str, Prompt], out: Outputs) -> dict[str, list[Record]]:
    """Distinct records of each prompt in the order shown; prompts with fewer than two are rejected here."""
    pool: dict[str, dict[str, Record]] = defaultdict(dict)
    for record in read_rows(ctx.inputs["candidates"] / "records.jsonl", Record):
        pool[record.prompt_id].setdefault(dumps(record.fields, prompts[record.prompt_id].keys), record)
    shown: dict[str, list[Record]] = {}
    limit = ctx.config["counts"].get("preferences") or len(prompts)
    for prompt_id in list(prompts)[:limit] if limit >= len(prompts) else spread(ctx, list(prompts), limit):
        records = list(pool[prompt_id].values())
        if len(records) < 2:
            ctx.ledger.reject("fewer_than_two_candidates")
            out.write("rejected", {"prompt_id": prompt_id, "reason": "fewer_than_two_candidates", "text": ""})
            continue
        derived_random(ctx.config["seed"], prompt_id, "order").shuffle(records)
        shown[prompt_id] = records
    return shown


def spread(ctx: Context, prompt_ids: Sequence[str], limit: int) -> list[str]:
    """A draw of ``limit`` prompts over all kinds (the prompts are sorted by kind), in their order."""
    chosen = set(derived_random(ctx.config["seed"], "preferences").sample(list(prompt_ids), limit))
    return [prompt_id for prompt_id in prompt_ids if prompt_id in chosen]


def rank(prompt_id: str, records: Sequence[Record], text: str, finish_reason: str, index_base: int) -> Preference:
    """Read the judge's answer.

    Raises:
        Rejected: unusable, or a tie by the judge's own scores.
    """
    judged = parse_judge(text, len(records), finish_reason, index_base)
    if judged.scores and judged.scores[judged.best] <= judged.scores[judged.worst]:
        raise Rejected("tie")
    chosen, rejected = records[judged.best].id, records[judged.worst].id
    return Preference(prompt_id, chosen, rejected, [record.id for record in records], judged.scores, judged.reason)
