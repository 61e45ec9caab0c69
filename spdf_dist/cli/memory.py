"""How the process holds memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator

USER_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""Environment variables by which a user has decided already."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # names and numbers of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let malloc keep freed memory for the next tensor. Returns whether it does.

    By default, glibc maps each block above 32 MiB page by page and returns it to the system when it is freed. The
    logits and the embedding's gradient are that large in every step. With this setting, the process holds its largest
    use so far, and about a tenth more. Another C library, or a user's own setting, is left unchanged.
    """
    if any(name in os.environ for name in USER_SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """A context for imports that last seconds: Python's garbage collector is off, and later skips what was imported.

    While torch, megatron-core and DeepSpeed are imported, the collector would scan a growing number of objects again
    and again, none of which can be freed. That takes a fifth of the CPU time of the imports.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
