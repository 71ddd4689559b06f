"""One mini Slurm for all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm import mini


@pytest.fixture(scope="session")
def slurm() -> Iterator[Path]:
    """Its folder; a session without Slurm skips."""
    if reason := mini.missing():
        pytest.skip(reason)
    with mini.Mini() as running:
        yield running.root
