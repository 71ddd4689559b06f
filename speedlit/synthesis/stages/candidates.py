"""Stage ``candidates``: the junior answers every root prompt several times; one pool for ranking and for revision (paper 3.2.4)."""

from __future__ import annotations

from speedlit.context import Context
from speedlit.synthesis.stages.common import count_of, prompts_of, sample, write_requests


def run(ctx: Context) -> None:
    """Write ``generations.jsonl``, ``records.jsonl`` and ``rejected.jsonl`` for the prompts of use ``root``."""
    samples = ctx.config["counts"]["candidates"]
    sample(ctx, "junior", "junior", write_requests(ctx, "junior", prompts_of(ctx, "root"), samples), count_of(ctx, "root") * samples)
