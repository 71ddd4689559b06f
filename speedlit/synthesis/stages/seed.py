"""Stage ``seed``: the teacher writes the first records, from which the junior learns the format."""

from __future__ import annotations

from speedlit.context import Context
from speedlit.synthesis.stages.common import count_of, prompts_of, sample, write_requests


def run(ctx: Context) -> None:
    """Write ``generations.jsonl``, ``records.jsonl`` and ``rejected.jsonl`` for the prompts of use ``seed``."""
    sample(ctx, "teacher", "seed", write_requests(ctx, "teacher", prompts_of(ctx, "seed")), count_of(ctx, "seed"))
