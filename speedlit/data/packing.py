"""Several sequences in one row, none of which sees another; and pairs whose two completions see one prompt.

A row is a list of pieces. A token sees what precedes it in its own piece, and the trunk of its piece's group: a packed
sequence is a trunk alone, a pair is the prompt as trunk with the two completions as branches. Each branch begins with a copy of
the prompt's last token, so that its first token is predicted from where it would be predicted in a row of its own; and no
piece's first label counts, so that nothing is predicted across a seam.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from speedlit.data.plan import cuts
from speedlit.labels import IGNORE

TRUNK = 0  # the branch that all branches of its group see
WORTH = 1.25  # separate tokens per shared token from which on sharing a prompt pays for its dense mask


@dataclass
class Piece:
    """A run of tokens in a row.

    Attributes:
        ids: its tokens.
        labels: as long; the first one doesn't count.
        owner: which sequence of the batch it belongs to.
        group: pieces of other groups don't see it.
        branch: 0: seen by its whole group; else by itself only.
        start: position of its first token.
    """

    ids: Sequence[int]
    labels: Sequence[int]
    owner: int
    group: int = 0
    branch: int = TRUNK
    start: int = 0


@dataclass
class Unit:
    """What can't be torn apart: rows, and the numbers of the samples in them."""

    members: list[int]
    rows: list[list[Piece]]

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return max(sum(len(piece.ids) for piece in row) for row in self.rows)


Layout = Callable[[Sequence[dict[str, Any]]], list[Unit]]


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which items share a bin: longest first, each into the fullest bin that has room for it.

    Args:
        lengths: of the items; one longer than the room gets a bin of its own.
        room: of a bin.

    Returns:
        Item numbers per bin.
    """
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, bin), ascending
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect_left(free, (lengths[item], -1))
        left, number = free.pop(place) if place < len(free) else (max(room, lengths[item]), len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(item)
        insort(free, (left - lengths[item], number))
    return bins


def packed(samples: Sequence[dict[str, Any]], room: int) -> list[Unit]:
    """Rows of up to ``room`` tokens, filled with samples of one sequence each."""
    bins = best_fit([len(sample["rows"][0][0]) for sample in samples], room)
    return [Unit(found, [[_whole(samples[i]["rows"][0], i, group) for group, i in enumerate(found)]]) for found in bins]


def shared(samples: Sequence[dict[str, Any]]) -> list[Unit]:
    """One row per pair with the prompt once; two where truncation has left different parts of the prompt."""
    return [_pair(sample, number, len(samples)) for number, sample in enumerate(samples)]


def _pair(sample: dict[str, Any], number: int, count: int) -> Unit:
    chosen, rejected = sample["rows"]
    head = _head(chosen)
    if head < 2 or head != _head(rejected) or not np.array_equal(chosen[0][:head], rejected[0][:head]):
        return Unit([number], [[_whole(chosen, number)], [_whole(rejected, count + number)]])
    cut = head - 1
    row = [Piece(chosen[0][:cut], chosen[1][:cut], number)]
    for branch, (ids, labels) in enumerate((chosen, rejected), 1):
        row.append(Piece(ids[cut:], labels[cut:], number + count * (branch - 1), branch=branch, start=cut))
    return Unit([number], [row])


def _whole(sequence: tuple[Sequence[int], Sequence[int]], owner: int, group: int = 0) -> Piece:
    """A sequence in one piece."""
    ids, labels = sequence
    return Piece(ids, labels, owner, group)


def _head(sequence: tuple[Sequence[int], Sequence[int]]) -> int:
    """Length of the prompt."""
    counted = np.asarray(sequence[1]) != IGNORE
    return int(counted.argmax()) if counted.any() else len(counted)


def sharing_pays(samples: Sequence[dict[str, Any]]) -> bool:
    """Whether pairs in rows of their own have so many more tokens that one row for both is faster."""
    apart = sum(len(ids) for sample in samples for ids, _ in sample["rows"])
    together = sum(len(piece.ids) for unit in shared(samples) for row in unit.rows for piece in row)
    return apart >= WORTH * together


def micro_batches(units: Sequence[Unit], size: int | None, overhead: int, tokens: int | None = None) -> list[list[Unit]]:
    """Units cut into micro-batches of similar width, so that little of them is padding; the widest first, as in ``plan.micro_batches``.

    Args:
        units: of one step of a rank.
        size: units in a micro-batch at most; None: no bound.
        overhead: what one more micro-batch costs, in padded tokens.
        tokens: padded tokens in a micro-batch of several units at most; None: no bound.
    """
    by_width = sorted(units, key=lambda unit: (unit.width, unit.members))
    widths = np.array([unit.width for unit in by_width])
    return [list(by_width[start:end]) for start, end in reversed(cuts(widths, size, overhead, tokens))]


def collate_units(units: Sequence[Unit], samples: Sequence[dict[str, Any]], pad_id: int) -> dict[str, Any]:
    """One micro-batch.

    Args:
        units: what is in it.
        samples: that the units' members count.
        pad_id: padding id.

    Returns:
        ids, labels, positions, groups (-1: padding), branches and owners, all (rows, T); members: numbers of the samples;
        names: their ids. An owner is a sample's place among the members, plus their number for a second sequence.
    """
    members = [i for unit in units for i in unit.members]
    place = {i: new for new, i in enumerate(members)}
    rows = [row for unit in units for row in unit.rows]
    shape = len(rows), max(sum(len(piece.ids) for piece in row) for row in rows)
    fills = {"ids": pad_id, "labels": IGNORE, "positions": 0, "groups": -1, "branches": TRUNK, "owners": 0}
    out = {name: np.full(shape, value, dtype=np.int64) for name, value in fills.items()}
    for number, row in enumerate(rows):
        start = 0
        for piece in row:
            second, i = divmod(piece.owner, len(samples))
            here = number, slice(start, start := start + len(piece.ids))
            out["ids"][here], out["labels"][here] = piece.ids, piece.labels
            out["positions"][here] = np.arange(piece.start, piece.start + len(piece.ids))
            out["groups"][here], out["branches"][here], out["owners"][here] = piece.group, piece.branch, place[i] + second * len(members)
            out["labels"][number, start - len(piece.ids)] = IGNORE
    return {**{name: torch.from_numpy(value) for name, value in out.items()}, "members": members, "names": [samples[i]["id"] for i in members]}
