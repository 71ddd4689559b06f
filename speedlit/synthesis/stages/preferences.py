"""Stage ``preferences``: the teacher names the best and the worst of the junior's answers to one prompt.

Only answers that parse are shown, in an order drawn from the seed, since judges favour places. With ``judge_swap`` each prompt is
judged a second time with the order reversed; a pair on which the two verdicts differ says more about places than about records.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from speedlit.context import Context, Reply, Request
from speedlit.records import Preference, Prompt, Record, read_rows
from speedlit.synthesis.lines import grouped
from speedlit.synthesis.parsing import Rejected, dumps, parse_judge
from speedlit.synthesis.quality import Answers, JudgeMeasures
from speedlit.synthesis.schemas import judge_schema
from speedlit.synthesis.stages.common import Outputs, ask, count_of, exact_sampling, note_quality, prompts_of, structured
from speedlit.synthesis.templates import RoleTemplate, derived_random, load_set

Answer = tuple[tuple[Prompt, list[Record]], Request, Reply]  # the prompt with its records as shown, what was asked, what the judge said


def run(ctx: Context) -> None:
    """Write ``preferences.jsonl`` and ``rejected.jsonl`` ({prompt_id, reason, text})."""
    judge, swap = load_set(ctx.config["prompts"]).roles["judge"], ctx.config.get("judge_swap")
    with Outputs(ctx.out, "preferences", "rejected") as out:
        asked = refuse_few(ctx, out) * (1 + (swap is not None))
        several = ((prompt, records) for prompt, records in shown(ctx) if len(records) > 1)
        requests = (((prompt, records), order) for prompt, records in several for order in orders(ctx, prompt, records, judge, swap is not None))
        swaps: Counter[str] = Counter()
        measures, fates = JudgeMeasures(ctx.config.get("quality")), Answers(ctx.config.get("quality"))
        for verdicts in by_prompt(ask(ctx, "teacher", requests, "preferences: judge", asked)):
            (prompt, records), request, reply = verdicts[0]
            if request.index:  # a shard that has only the second question of this prompt
                continue
            try:
                preference = verdict(reply, records, judge.index_base)
                measures.add(preference, records)
                if swap is not None:
                    preference = checked(preference, verdicts[1:], records, judge.index_base, swaps)
                if swap == "drop" and preference.consistent is not True:
                    raise Rejected("judge_disagrees" if preference.consistent is False else "judge_swap_unusable")
            except Rejected as reason:
                ctx.ledger.reject(str(reason))
                measures.reject(str(reason))
                fates.add(prompt.kind, reply.provenance.get("model", "judge"), str(reason))
                out.write("rejected", {"prompt_id": request.id, "reason": str(reason), "text": reply.text})
                continue
            ctx.ledger.accepted += 1
            fates.add(prompt.kind, reply.provenance.get("model", "judge"), "strict")
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


def by_prompt(answers: Iterable[Answer]) -> Iterator[list[Answer]]:
    """Neighbouring answers on one prompt, together."""
    for _, group in itertools.groupby(answers, key=lambda answer: answer[1].id):
        yield list(group)


def verdict(reply: Reply, records: Sequence[Record], index_base: int) -> Preference:
    """Read one answer of the judge over ``records`` in the order they were shown.

    Raises:
        Rejected: no answer, unusable, or a tie by the judge's own scores.
    """
    if reply.error:
        raise Rejected(f"no_answer:{reply.error}")
    return rank(reply.id, records, reply.text, reply.finish_reason, index_base)


def checked(preference: Preference, second: Sequence[Answer], records: Sequence[Record], index_base: int, swaps: Counter[str]) -> Preference:
    """Say whether the judge names the same best and worst when the order is reversed; ``consistent`` stays None where it gave no usable answer."""
    try:
        again = verdict(second[0][2], records[::-1], index_base) if second else None
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


def refuse_few(ctx: Context, out: Outputs) -> int:
    """Reject the prompts with fewer than two different records; returns how many are left to judge."""
    count = 0
    for prompt, records in shown(ctx):
        if len(records) > 1:
            count += 1
            continue
        ctx.ledger.reject("fewer_than_two_candidates")
        out.write("rejected", {"prompt_id": prompt.id, "reason": "fewer_than_two_candidates", "text": ""})
    return count


def shown(ctx: Context) -> Iterator[tuple[Prompt, list[Record]]]:
    """The prompts to judge, each with its distinct records in the order shown."""
    path, total = ctx.inputs["candidates"] / "records.jsonl", count_of(ctx, "root")
    chosen = spread(ctx, total, ctx.config["counts"].get("preferences") or total)
    for place, (prompt, records) in enumerate(grouped(prompts_of(ctx, "root"), read_rows(path, Record), str(path))):
        if not chosen[place]:
            continue
        distinct: dict[str, Record] = {}
        for record in records:
            distinct.setdefault(dumps(record.fields, prompt.keys), record)
        found = list(distinct.values())
        derived_random(ctx.config["seed"], prompt.id, "order").shuffle(found)
        yield prompt, found


def spread(ctx: Context, total: int, limit: int) -> bytearray:
    """A mark for each prompt of a draw of ``limit`` over all kinds (the prompts are sorted by kind)."""
    chosen = bytearray(total)
    for place in derived_random(ctx.config["seed"], "preferences").sample(range(total), limit) if limit < total else range(total):
        chosen[place] = 1
    return chosen


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
