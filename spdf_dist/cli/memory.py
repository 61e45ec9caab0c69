"""How the process holds memory on a CPU."""

from __future__ import annotations

import ctypes
import os

USER_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""Environment variables by which a user has decided already."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # names and numbers of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed for the next tensor; returns whether it does.

    glibc maps a block above 32 MiB anew, page by page, each time, and gives it back when it is freed. Logits and the
    embedding's gradient are that large in every step. The process then holds the most that it needed so far and a tenth
    more for want of blocks that fit. Another C library, or a user's own setting, stays as it is.
    """
    if any(name in os.environ for name in USER_SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
