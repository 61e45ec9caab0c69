"""Claims: only one process at a time makes a given file or folder."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spdf_dist.base.file_locks import try_lock, unlock
from spdf_dist.base.signals import STOP_SIGNALS
from spdf_dist.config.errors import PERMISSION, NoPermissionError, UserError

LOCK_NAME_CHARACTERS = 100


@contextmanager
def claimed(target: Path) -> Iterator[None]:
    """Ensure that no other process makes ``target`` while the block runs.

    The claim is a lock on a file beside ``target``; it ends with the process. The folder of ``target`` is created, and
    removed again if the block fails and leaves it empty. Devices and pipes are not claimed. Where no lock file can be
    written beside a ``target`` that exists there is no claim either, and the command itself reports the error.

    Raises:
        UserError: another process is making ``target``, this process may not make it, or a link has the name of the
            lock file.
    """
    try:
        real = target.resolve()
        special = real.exists() and not (real.is_file() or real.is_dir())
        above = [folder for folder in real.parents if not folder.exists()]
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        yield
        return
    if special or real == real.parent:
        yield
        return
    path = real.with_name(f".{real.name[:LOCK_NAME_CHARACTERS]}.lock")
    descriptor: int | None = None
    had_lock_file = os.path.lexists(path)
    try:
        try:
            with held_back():
                descriptor = take(path)
            if descriptor is None:
                raise UserError(f"{target}: another process is writing it; wait until it ends, or name another place")
        except OSError as error:
            if not had_lock_file:
                with suppress(OSError):
                    path.unlink()
            if error.errno == errno.ELOOP:
                raise UserError(f"{path} is a link and is not followed: remove it") from None
            if error.errno in PERMISSION and not real.exists():
                raise NoPermissionError(f"{target} cannot be made: {error.strerror}") from None
        yield
    except BaseException:
        give_back(path, descriptor)
        with suppress(OSError):  # a folder is not empty
            for folder in above:
                folder.rmdir()
        raise
    else:
        give_back(path, descriptor)


@contextmanager
def held_back() -> Iterator[None]:
    """Block stop signals until the end of the block, so that what the block creates is known and can be removed."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def give_back(path: Path, descriptor: int | None) -> None:
    """End a claim. The file is deleted before the unlock, so that the next holder notices that it is gone."""
    if descriptor is not None:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        unlock(descriptor)


def take(path: Path) -> int | None:
    """A descriptor that holds the lock on the file at ``path``; None if another process holds it."""
    while True:
        descriptor = try_lock(path)
        if descriptor is None:
            return None
        try:
            if os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False)):
                return descriptor
        except FileNotFoundError:
            pass
        unlock(descriptor)  # the previous holder has deleted this file in the meantime
