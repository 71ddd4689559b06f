"""Numbers per sample that are kept beside the shards because making them costs a pass over the data; their file has a checksum."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np


def load(place: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """A kept table; None where there is none, or one that is damaged or of another shape: it is made again then."""
    try:
        with np.load(place) as found:
            table = np.asarray(found["table"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return table if table.shape == shape else None


def save(place: Path, table: np.ndarray) -> None:
    """Keep a table under its name, which it gets when it is complete; a read-only folder keeps nothing."""
    temporary = place.with_name(f".{place.stem}.{os.getpid()}.npz")
    try:
        np.savez(temporary, table=table)
        temporary.replace(place)
    except OSError:
        temporary.unlink(missing_ok=True)
