"""``speedlit list`` reads the losses' names from the source; they are those that a config may give."""

from __future__ import annotations

from speedlit.commands.list import losses
from speedlit.losses.preference import LOSSES


def test_the_listed_losses_are_those_that_can_be_named() -> None:
    listed = losses()
    assert {name for name, _ in listed} == set(LOSSES)
    assert all(text for _, text in listed)
