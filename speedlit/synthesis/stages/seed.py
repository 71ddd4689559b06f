"""Stage ``seed``: the teacher writes the first records, from which the junior learns the format."""

from __future__ import annotations

from speedlit.context import Context
from speedlit.synthesis.stages.common import prompts_of, sample, write_requests


def run(ctx: Context) -> None:
    """Write ``generations.jsonl``, ``records.jsonl`` and ``rejected.jsonl`` for the prompts of use ``seed``."""
    prompts = prompts_of(ctx, "seed")
    sample(ctx, "teacher", "seed", prompts, write_requests(ctx, "teacher", prompts))
