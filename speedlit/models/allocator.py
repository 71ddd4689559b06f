"""The C library's allocator, told to keep what a training step frees: the next step asks for the same sizes again."""

from __future__ import annotations

import ctypes
import sys

# of glibc's malloc.h
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3


def keep_freed_memory(limit: int = 1 << 30) -> bool:
    """Let glibc reuse freed blocks of up to ``limit`` bytes in place of giving them back to the system at once.

    By default every large tensor of a CPU step is mapped, zeroed by the kernel page by page, and unmapped again.

    Returns:
        Whether this C library could be told.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(MMAP_THRESHOLD, limit)) and bool(mallopt(TRIM_THRESHOLD, limit))
