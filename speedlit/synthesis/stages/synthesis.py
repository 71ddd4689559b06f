"""Stage ``synthesis``: the senior writes the data; on the held-out prompts junior and control write too, for the comparison.

The junior answers held-out prompts as often as it had candidates, since the best of them is the upper bound of the tables. It writes
data of its own only where ``comparison.sources`` asks for them.
"""

from __future__ import annotations

import itertools

from speedlit.context import Context
from speedlit.records import Prompt, Record
from speedlit.synthesis.quality import Trend
from speedlit.synthesis.stages.common import count_of, note_quality, prompts_of, sample, write_requests

DATA, HELD_OUT = ("synthetic",), ("test", "validation")


def run(ctx: Context) -> None:
    """Write ``generations-S.jsonl``, ``records-S.jsonl`` and ``rejected-S.jsonl`` for each source S."""
    counts = ctx.config["counts"]
    samples = counts.get("test_samples", 1)
    plan = {"senior": (DATA, samples), "junior": (DATA if "junior" in ctx.config["comparison"]["sources"] else (), max(samples, counts["candidates"]))}
    if ctx.config.get("control", True):
        plan["control"] = ((), samples)
    trend = Trend(ctx.config.get("quality"))

    def compare(record: Record, prompt: Prompt) -> None:
        if prompt.use in HELD_OUT:  # the prompts that all of them answer
            trend.add(record.source, record)

    for source, (data, repeats) in plan.items():
        requests = itertools.chain(write_requests(ctx, source, prompts_of(ctx, *data)), write_requests(ctx, source, prompts_of(ctx, *HELD_OUT), repeats))
        total = count_of(ctx, *data) + count_of(ctx, *HELD_OUT) * repeats
        records = sample(ctx, source, source, requests, total, suffix=f"-{source}", watch=compare)
        ctx.ledger.notes[source] = {"requests": total, "records": records}
    note_quality(ctx, "senior after junior", trend.result("junior", "senior"))
