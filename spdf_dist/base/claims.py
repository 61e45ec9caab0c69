"""A file or folder that a command makes belongs to one process until it is whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spdf_dist.base.file_locks import try_lock, unlock
from spdf_dist.config.errors import UserError

LOCK_NAME_CHARACTERS = 100


@contextmanager
def claimed(target: Path, lock: Path | None = None) -> Iterator[None]:
    """No other process makes ``target`` while the block runs.

    The claim is a lock on a file beside ``target`` (or on ``lock``), which goes with the process however that ends.

    Raises:
        UserError: another process is making it, or nothing can be written beside it.
    """
    real = target.resolve()
    path = lock or real.with_name(f".{real.name[:LOCK_NAME_CHARACTERS]}.lock")
    try:
        descriptor = take(path)
    except OSError as error:
        raise UserError(f"{target} cannot be made: {path.parent}: {error.strerror}") from None
    if descriptor is None:
        raise UserError(f"{target}: another process is making it; wait for its end or name another place")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock is given back: whoever takes it then sees that the file is gone
        unlock(descriptor)


def take(path: Path) -> int | None:
    """A descriptor that holds the lock on the file that lies at ``path``; None when another process has it."""
    while True:
        descriptor = try_lock(path)
        if descriptor is None:
            return None
        try:
            if os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False)):
                return descriptor
        except FileNotFoundError:
            pass
        unlock(descriptor)  # its holder has removed the file in between
