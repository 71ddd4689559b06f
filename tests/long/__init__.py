"""What takes many minutes, and so runs after the suite: ``make test-long``. One process after another: the demo takes both cores."""

from __future__ import annotations

import os

import pytest

LONG = [
    pytest.mark.long,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(not os.environ.get("SPEEDLIT_LONG"), reason="takes half an hour: make test-long"),
]
