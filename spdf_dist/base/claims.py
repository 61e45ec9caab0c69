"""A file or folder that a command makes belongs to one process until it is whole."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spdf_dist.base.file_locks import try_lock, unlock
from spdf_dist.base.signals import STOP_SIGNALS
from spdf_dist.config.errors import UserError

LOCK_NAME_CHARACTERS = 100


@contextmanager
def claimed(target: Path) -> Iterator[None]:
    """No other process makes ``target`` while the block runs.

    The claim is a lock on a file beside ``target``, which goes with the process however that ends. The folder of
    ``target`` is made, and removed again when the block fails and leaves nothing in it. There is no claim on devices
    and pipes, nor where no file can be written: the command says in its own words what is wrong there.

    Raises:
        UserError: another process is making it, or a link lies in the place of the lock.
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
    try:
        try:
            with held_back():
                descriptor = take(path)
            if descriptor is None:
                raise UserError(f"{target}: another process is making it; wait for its end or name another place")
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UserError(f"{path} is a link and is not followed: remove it") from None
        yield
    except BaseException:
        give_back(path, descriptor)
        with suppress(OSError):  # not empty
            for folder in above:
                folder.rmdir()
        raise
    else:
        give_back(path, descriptor)


@contextmanager
def held_back() -> Iterator[None]:
    """Signals that stop a command wait until the block is left: what it makes is known then, and can be removed."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def give_back(path: Path, descriptor: int | None) -> None:
    """End a claim. The file goes first: whoever takes the lock then sees that it is gone."""
    if descriptor is not None:
        path.unlink(missing_ok=True)
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
