"""Stage ``synthesis``: the senior writes the data; on the held-out prompts junior and control write too, for the comparison.

The junior answers held-out prompts as often as it had candidates, since the best of them is the upper bound of the tables. It writes
data of its own only where ``comparison.sources`` asks for them.
"""

from __future__ import annotations

from speedlit.context import Context
from speedlit.synthesis.quality import trend
from speedlit.synthesis.stages.common import note_quality, prompts_of, sample, write_requests


def run(ctx: Context) -> None:
    """Write ``generations-S.jsonl``, ``records-S.jsonl`` and ``rejected-S.jsonl`` for each source S."""
    counts = ctx.config["counts"]
    data, held_out = prompts_of(ctx, "synthetic"), prompts_of(ctx, "test", "validation")
    samples = counts.get("test_samples", 1)
    plan = {"senior": (data, samples), "junior": (data if "junior" in ctx.config["comparison"]["sources"] else [], max(samples, counts["candidates"]))}
    if ctx.config.get("control", True):
        plan["control"] = ([], samples)
    for source, (prompts, repeats) in plan.items():
        requests = write_requests(ctx, source, prompts) + write_requests(ctx, source, held_out, repeats)
        records = sample(ctx, source, source, [*prompts, *held_out], requests, suffix=f"-{source}")
        ctx.ledger.notes[source] = {"requests": len(requests), "records": len(records)}
    measured = ctx.ledger.notes["quality"]
    note_quality(ctx, "senior after junior", trend(measured["junior"], measured["senior"], ctx.config.get("quality")))
