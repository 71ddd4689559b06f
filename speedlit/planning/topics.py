"""The topics that a plan counts with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speedlit.pipeline.config import RunConfig
from speedlit.synthesis.stages.topics import read_topics, truncate

STAND_IN = ("Arts/Movies/Titles", "Science/Biology/Ecology", "Recreation/Boating/Sailing", "Society/Law/Tenancy", "Business/Logistics/Rail_Freight")


@dataclass(frozen=True)
class Topics:
    """The run's topics; ``count`` is None where there are none yet and others stand in."""

    paths: Sequence[str]
    count: int | None


def topics_of(config: RunConfig) -> Topics:
    """The topics of the config's file, or of the embedded teacher's world (served on loopback for the moment), else stand-ins."""
    depth = config.topics.depth
    if config.topics.file is not None:
        paths = list(dict.fromkeys(truncate(path, depth) for path in read_topics(Path(config.topics.file))))
        return Topics(paths, len(paths))
    if config.teacher.embedded is not None:
        from speedlit.pipeline.services import Services

        with Services(config, Path(config.root)) as services:
            ask = services.checker()
            if ask is not None:
                paths = list(dict.fromkeys(truncate(path, depth) for path in ask("topics", None)["topics"]))
                return Topics(paths, len(paths))
    return Topics(STAND_IN, None)
