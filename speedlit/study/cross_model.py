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
from speedlit.study.cells import known_model, without_place
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
    own = base == room.config["base"]
    if own and (room.inputs["dataset"] / "triplets-junior.jsonl").is_file():
        return Variant(f"generator {base}", "the run's own junior's data", sources.triplets(room, "junior"), f"generator {first}")
    name = "junior" if own else f"junior-{slug(base)}"
    data = sources.made(room, name, "junior", room.inputs["junior"] / "model" if own else junior(room, base), False)
    counts = read_object(data.parent / sources.MADE, "accepted", "generated", "kept")
    what = f"its junior's data: {counts['accepted']:,} of {counts['generated']:,} answers are records, {counts['kept']:,} pass the filters"
    return Variant(f"generator {base}", what, data, f"generator {first}")


def slug(name: str) -> str:
    """A model's name as the name of a folder."""
    return re.sub(r"[^\w.-]+", "-", name)


def junior(room: Room, base: str) -> Path:
    """SFT of another base on the run's seed records; the finished model's folder."""
    model = models.place(base, room.folder / "models")
    config = job(room.context(), "junior", room.inputs["junior"] / "data", [], room.folder)["config"]
    config["model"]["init_args"]["backbone"]["name"] = model
    out = room.folder / "generators" / f"{slug(base)}-{content_id([without_place(config), known_model(model)])}"
    room.say(f"study {room.kind}: a junior from {base}")
    return Path(fit(config, out)["model"])
