"""``speedlit study ablation``: the loop with stages switched off, and with DPO replaced by SFT on the chosen answers.

A variant is a data source: the records that the loop would have ended with. What the run holds is used as it is, what it lacks is written by the run's own
generators; the teacher is asked for nothing, but by ``untruncated``, which is a loop of its own with its own topics.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from speedlit.errors import UsageError
from speedlit.pipeline.config import RunConfig
from speedlit.study import sources
from speedlit.study.room import Room
from speedlit.study.variants import Variant, compare

VARIANTS = {  # name: (data source, what it is)
    "full": ("refined", "junior, DPO, revisor: the loop as it is"),
    "no-revisor": ("senior", "junior, DPO"),
    "no-dpo": ("junior+revisor", "junior, revisor"),
    "junior-only": ("junior", "SFT on the seed records alone"),
    "sft-on-chosen": ("control", "junior, SFT on the chosen answers (beta 0) in place of DPO"),
    "sft-on-chosen+revisor": ("control+revisor", "the same, with the revisor"),
    "teacher": ("teacher", "the teacher's own seed records: no generator"),
}
UNTRUNCATED = "untruncated"
DEEP = 99  # levels that no topic path has: nothing is cut
ALL = (*VARIANTS, UNTRUNCATED)


def run(room: Room) -> dict[str, Any]:
    """Train an embedder per variant and seed; the summary that the tables draw.

    Raises:
        UsageError: an unknown variant, or fewer than two.
    """
    wanted = room.study["variants"]
    unknown = [name for name in wanted if name not in ALL]
    if unknown:
        raise UsageError(f"study.variants has {unknown[0]!r}; choose among {', '.join(ALL)}")
    if len(set(wanted)) < 2:
        raise UsageError("study.variants needs two different variants at least, the first one is what the others are compared with")
    room.need("dataset")
    found = [variant(room, name, wanted[0]) for name in dict.fromkeys(wanted)]
    return {**compare(room, found), "reference": wanted[0]}


def variant(room: Room, name: str, reference: str) -> Variant:
    """A variant with its data, which are made where they are not there."""
    if name == UNTRUNCATED:
        return Variant(name, "topics keep all their levels: a loop of its own", untruncated(room), reference)
    source, what = VARIANTS[name]
    return Variant(name, what, sources.triplets(room, source), reference)


def untruncated(room: Room) -> Path:
    """The refined triplets of a second loop, in a root of its own, whose topics keep all levels; it asks the teacher as a run does, and goes on as one."""
    from speedlit.pipeline.loop import Wanted, stages
    from speedlit.pipeline.loop import run as loop

    own: RunConfig = room.services.config
    root = room.folder / "ablation" / UNTRUNCATED
    room.say(f"study {room.kind}: a loop with whole topics in {root}")
    topics = replace(own.topics, depth=DEEP)
    loop(replace(own, root=str(root), topics=topics), Wanted(until="dataset"), room.say)
    return stages()["dataset"].folder(root) / "triplets-refined.jsonl"
