"""Memory that a step frees is used again by the next one.

glibc hands large buffers back to the system and asks for them anew in every step, which costs page faults; a
training process keeps them instead. What that gains is in dev/LOG.md.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
LARGE = 32 << 20  # bytes; the largest threshold that glibc takes


def keep_freed_memory() -> bool:
    """Tell glibc neither to map large buffers apart nor to give memory back; False where there is no glibc."""
    return _set({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 << 20})


def keep_freed_buffers() -> bool:
    """The same for buffers of up to `LARGE` bytes; larger ones, such as those that grow, go back to the system."""
    return _set({M_MMAP_THRESHOLD: LARGE, M_TRIM_THRESHOLD: 16 * LARGE, M_TOP_PAD: 2 * LARGE})


def _set(options: Mapping[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library, such as musl: its own ways are fine
        return False
    return all([mallopt(option, value) for option, value in options.items()])
