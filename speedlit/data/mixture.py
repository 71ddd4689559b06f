"""The entries of ``data.shards``: which shard sets an epoch is made of, and how much of each."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from speedlit.errors import UsageError

Places = Union[str, list[Union[str, dict[str, Any]]]]  # noqa: UP007 - evaluated at run time on Python 3.10 as well


@dataclass(frozen=True)
class Source:
    """A shard set in a mixture.

    Attributes:
        path: its folder.
        weight: how often an epoch goes through it: 0.1 takes a tenth of it, another one each time; 2 takes each sample twice.
        cap: samples of an epoch at most.
    """

    path: str
    weight: float = 1.0
    cap: int | None = None

    @classmethod
    def of(cls, value: str | dict[str, Any]) -> Source:
        """From an entry of ``data.shards``.

        Raises:
            UsageError: an unknown key, no path, or a weight or cap that takes nothing.
        """
        entry: dict[str, Any] = {"path": value} if isinstance(value, (str, Path)) else dict(value)
        if strange := sorted(set(entry) - {"path", "weight", "cap"}):
            raise UsageError(f"data.shards has an entry with {', '.join(strange)}; it knows path, weight and cap")
        if not entry.get("path"):
            raise UsageError(f"data.shards has an entry without path: {entry}")
        found = cls(str(entry["path"]), float(entry.get("weight", 1.0)), entry.get("cap"))
        if not 0 < found.weight < float("inf") or (found.cap is not None and found.cap < 1):
            raise UsageError(f"data.shards: weight {found.weight} and cap {found.cap} of {found.path} take nothing; leave the set out, or raise them above 0")
        return found

    def take(self, count: int) -> int:
        """Samples of an epoch, of a set of ``count``."""
        return max(1, min(round(self.weight * count), self.cap or sys.maxsize))


def sources(places: Places | list[str]) -> list[Source]:
    """The entries of ``data.shards``."""
    return [Source.of(place) for place in (places if isinstance(places, list) else [places])]
