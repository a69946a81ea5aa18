"""Memory that a step frees is used again by the next one.

glibc hands large buffers back to the system and asks for them anew in every step, which costs page faults; a
training process keeps them instead. What that gains is in dev/LOG.md.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc neither to map large buffers apart nor to give memory back; False where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library, such as musl: its own ways are fine
        return False
    largest = 2**31 - 1
    return all((mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, largest), mallopt(M_TOP_PAD, 64 << 20)))
