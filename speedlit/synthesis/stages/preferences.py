"""Stage ``preferences``: the teacher names the best and the worst of the junior's answers to one prompt.

Only answers that parse are shown, in an order drawn from the seed, since judges favour places. With ``judge_swap`` each prompt is
judged a second time with the order reversed; a pair on which the two verdicts differ says more about places than about records.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from speedlit.context import Context, Reply, Request
from speedlit.records import Preference, Prompt, Record, read_rows
from speedlit.synthesis.parsing import Rejected, dumps, parse_judge
from speedlit.synthesis.quality import Answers, JudgeMeasures
from speedlit.synthesis.schemas import judge_schema
from speedlit.synthesis.stages.common import Outputs, ask, exact_sampling, note_quality, prompts_of, structured
from speedlit.synthesis.templates import RoleTemplate, derived_random, load_set


def run(ctx: Context) -> None:
    """Write ``preferences.jsonl`` and ``rejected.jsonl`` ({prompt_id, reason, text})."""
    judge, swap = load_set(ctx.config["prompts"]).roles["judge"], ctx.config.get("judge_swap")
    prompts = {prompt.id: prompt for prompt in prompts_of(ctx, "root")}
    with Outputs(ctx.out, "preferences", "rejected") as out:
        shown = candidates(ctx, prompts, out)
        requests = [order for name, records in shown.items() for order in orders(ctx, prompts[name], records, judge, swap is not None)]
        answers = ask(ctx, "teacher", requests, "preferences: judge")
        swaps: Counter[str] = Counter()
        measures, fates = JudgeMeasures(ctx.config.get("quality")), Answers(ctx.config.get("quality"))
        for verdicts in by_prompt(answers):
            request, reply = verdicts[0]
            if request.index:  # a shard that has only the second question of this prompt
                continue
            try:
                preference = verdict(reply, shown[request.id], judge.index_base)
                measures.add(preference, shown[request.id])
                if swap is not None:
                    preference = checked(preference, verdicts[1:], shown[request.id], judge.index_base, swaps)
                if swap == "drop" and preference.consistent is not True:
                    raise Rejected("judge_disagrees" if preference.consistent is False else "judge_swap_unusable")
            except Rejected as reason:
                ctx.ledger.reject(str(reason))
                measures.reject(str(reason))
                fates.add(prompts[request.id].kind, reply.provenance.get("model", "judge"), str(reason))
                out.write("rejected", {"prompt_id": request.id, "reason": str(reason), "text": reply.text})
                continue
            ctx.ledger.accepted += 1
            fates.add(prompts[request.id].kind, reply.provenance.get("model", "judge"), "strict")
            out.write("preferences", preference)
    note_quality(ctx, "judge", measures.result(swaps), fates.result())
    if swap is not None:
        ctx.ledger.notes["judge_swap"] = {name: swaps[name] for name in ("checked", "agree", "best_differs", "worst_differs", "flipped", "unusable")}


def orders(ctx: Context, prompt: Prompt, records: Sequence[Record], judge: RoleTemplate, swap: bool) -> Iterator[Request]:
    """The question in the order shown and, with ``swap``, once more in reverse; its index says which."""
    texts = [dumps(record.fields, prompt.keys) for record in records]
    schema = judge_schema(judge.text, len(records), judge.index_base) if structured(ctx, "teacher") else None
    for index, name in enumerate(("judge", "judge reversed") if swap else ("judge",)):
        messages = judge.judge(prompt.text, texts[::-1] if index else texts)
        yield Request(prompt.id, messages, exact_sampling(ctx, "teacher", prompt.id, name), index, schema)


def by_prompt(answers: Iterable[tuple[Request, Reply]]) -> Iterator[list[tuple[Request, Reply]]]:
    """Neighbouring answers on one prompt, together."""
    for _, group in itertools.groupby(answers, key=lambda pair: pair[0].id):
        yield list(group)


def verdict(reply: Reply, records: Sequence[Record], index_base: int) -> Preference:
    """Read one answer of the judge over ``records`` in the order they were shown.

    Raises:
        Rejected: no answer, unusable, or a tie by the judge's own scores.
    """
    if reply.error:
        raise Rejected(f"no_answer:{reply.error}")
    return rank(reply.id, records, reply.text, reply.finish_reason, index_base)


def checked(preference: Preference, second: Sequence[tuple[Request, Reply]], records: Sequence[Record], index_base: int, swaps: Counter[str]) -> Preference:
    """Say whether the judge names the same best and worst when the order is reversed; ``consistent`` stays None where it gave no usable answer."""
    try:
        again = verdict(second[0][1], records[::-1], index_base) if second else None
    except Rejected:
        again = None
    if again is None:
        swaps["unusable"] += 1
        return preference
    swaps["checked"] += 1
    swaps["best_differs"] += again.chosen != preference.chosen
    swaps["worst_differs"] += again.rejected != preference.rejected
    swaps["flipped"] += again.chosen == preference.rejected or again.rejected == preference.chosen
    agree = (again.chosen, again.rejected) == (preference.chosen, preference.rejected)
    swaps["agree"] += agree
    return replace(preference, consistent=agree)


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
