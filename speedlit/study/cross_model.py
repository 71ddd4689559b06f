"""``speedlit study cross-model``: other embedder backbones on the same triplets, and other generator bases tuned on the same seed records.

A generator base is compared where the paper's Table 4 compares them, at the junior: SFT on the run's seed records, then answers to the run's data prompts,
then an embedder of the run's own backbone on them. The teacher is asked for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speedlit.errors import UsageError
from speedlit.files import content_id, read_object
from speedlit.pipeline.fitting import fit
from speedlit.pipeline.training import job
from speedlit.study import models, sources
from speedlit.study.cells import known_model
from speedlit.study.room import Room
from speedlit.study.variants import Variant, compare

BACKBONE = ("name", "attention", "pooling")


def run(room: Room) -> dict[str, Any]:
    """Train an embedder per backbone and seed, and per generator base and seed; the first of each list is what the others are compared with.

    Raises:
        UsageError: fewer than two models, or an entry that says something unknown.
    """
    room.need("dataset", "junior")
    backbones = [checked(entry) for entry in room.study["backbones"]]
    bases = list(dict.fromkeys(room.study["generators"]))
    if len(backbones) < 2 and len(bases) < 2:
        raise UsageError("study.backbones and study.generators name fewer than two models; there is nothing to compare")
    triplets = sources.triplets(room, room.study["source"])
    found = [backbone(room, entry, backbones[0], triplets) for entry in backbones] if len(backbones) > 1 else []
    found += [generator(room, base, bases[0]) for base in bases] if len(bases) > 1 else []
    return {**compare(room, found), "reference": "the first of each kind"}


def checked(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of ``study.backbones``.

    Raises:
        UsageError: no name, or an unknown key.
    """
    if not entry.get("name") or set(entry) - set(BACKBONE):
        raise UsageError(f"study.backbones has {dict(entry)}; an entry has {', '.join(BACKBONE)}, and needs a name")
    return dict(entry)


def title(entry: Mapping[str, Any]) -> str:
    """A backbone in a few words."""
    return " ".join(["embedder", str(entry["name"]), *(str(entry[key]) for key in BACKBONE[1:] if entry.get(key))])


def backbone(room: Room, entry: Mapping[str, Any], first: Mapping[str, Any], triplets: Path) -> Variant:
    """An embedder of another backbone on the same triplets."""
    over = {"name": models.place(entry["name"], room.folder / "models"), **({"attention": entry["attention"]} if entry.get("attention") else {})}
    tokens = {"tokens": {"pooling": entry["pooling"]}} if entry.get("pooling") else {}
    return Variant(title(entry), f"{room.study['source']} data", triplets, title(first), {"model": {"init_args": {"backbone": over, **tokens}}})


def generator(room: Room, base: str, first: str) -> Variant:
    """The run's own embedder on the data of a junior of another base."""
    name = re.sub(r"[^\w.-]+", "-", base)
    if base == room.config["base"]:
        data = sources.made(room, "junior", "junior", room.inputs["junior"] / "model", False)
    else:
        data = sources.made(room, f"junior-{name}", "junior", junior(room, base, name), False)
    counts = read_object(data.parent / sources.MADE, "accepted", "generated")
    what = f"its junior's data: {counts['accepted']:,} of {counts['generated']:,} answers are records, {counts['kept']:,} pass the filters"
    return Variant(f"generator {base}", what, data, f"generator {first}")


def junior(room: Room, base: str, name: str) -> Path:
    """SFT of another base on the run's seed records; the finished model's folder."""
    model = models.place(base, room.folder / "models")
    config = job(room.context(), "junior", room.inputs["junior"] / "data", [], room.folder)["config"]
    config["model"]["init_args"]["backbone"]["name"] = model
    out = room.folder / "generators" / f"{name}-{content_id([config, known_model(model)])}"
    room.say(f"study {room.kind}: a junior from {base}")
    return Path(fit(config, out)["model"])
