"""Recognizes errors that mean that the machine lacks something, and describes them in one line.

The signs are compared without regard to case: torch's own socket errors are in lower case.
"""

from __future__ import annotations

import errno
import resource

from spdf_dist.config.errors import SpdfError, causes

NO_MEMORY = (
    *("Cannot allocate memory", "can't allocate memory", "out of memory", "std::bad_alloc"),
    # The dynamic linker, and oneDNN, do not say more.
    *("failed to map segment", "could not create a primitive", "could not create a memory object"),
)
NO_THREAD = ("can't start new thread", "Resource temporarily unavailable")
NO_SOCKET = ("Cannot resolve 127.0.0.1",)
"""Of gloo. An address in digits needs no name service, but a socket."""
NO_FILE = ("Too many open files",)
NO_ROOM = ("No space left on device", "Failed to init uv loop")


LEAST_ADDRESSES = 2**30
"""Bytes of address space without which torch is not imported and started."""


def scarcity(error: BaseException) -> str | None:
    """What the machine lacks according to ``error`` or its causes, in one line; None for any other error."""
    for each in causes(error):
        if isinstance(each, MemoryError):
            return f"out of memory{f': {each}' if str(each) else ''}{memory_limit()}"
        if isinstance(each, SystemError) and "exception set" in str(each) and memory_limit():
            return f"out of memory: {each}{memory_limit()}"  # an allocation failed where C code did not say so
        if isinstance(each, OSError) and each.errno == errno.EMFILE:
            return too_many_files()
        if not isinstance(each, RuntimeError | ImportError):
            continue
        lines = [line.strip() for line in str(each).splitlines() if line.strip()]
        if any(sign.lower() in line.lower() for line in lines for sign in NO_FILE):
            return (
                f"too many open files (ulimit -n allows this process {resource.getrlimit(resource.RLIMIT_NOFILE)[0]})"
            )
        for signs, meaning, limit in (
            (NO_MEMORY, "out of memory: ", memory_limit()),
            (NO_THREAD, "a thread cannot be started: ", memory_limit()),
            (NO_SOCKET, "a socket cannot be opened; are too few open files allowed (ulimit -n)? ", ""),
            (NO_ROOM, "", ""),
        ):
            line = next((line for line in lines if any(sign.lower() in line.lower() for sign in signs)), None)
            if line is not None:
                return f"{meaning}{line}{limit}"
    return None


def too_many_files() -> str:
    """What to say when this process may open no further file."""
    return f"too many open files (ulimit -n allows this process {resource.getrlimit(resource.RLIMIT_NOFILE)[0]})"


def require_addresses() -> None:
    """Raise SpdfError if ``ulimit -v`` is too low for training: then torch may end in native code at any moment."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESSES:
        raise SpdfError(f"out of memory: training needs more than 1 GiB of addresses{memory_limit()}")


def memory_limit() -> str:
    """The limit of this process's addresses, as text to append; empty if there is none."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return "" if limit == resource.RLIM_INFINITY else f" (ulimit -v allows this process {limit / 2**30:.2f} GiB)"
