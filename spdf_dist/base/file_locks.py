"""File locks that end with the process that holds them, also on file systems without locks.

The lock is ``flock``. If the file system does not support it (NFS without lockd, Lustre mounted without ``flock``), a
file beside the locked one names the holder. This excludes only processes of the same machine, and a warning says so.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from spdf_dist.base.atomic_files import atomic_file, remove_leftovers, rename_new

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of ``flock`` on a file system without locks."""

PROC = Path("/proc")

_holder_files: dict[int, Path] = {}
"""Holder files of this process, by the file descriptor of the lock that they replace."""


def try_lock(path: Path, patience: float = 0.0) -> int | None:
    """An open file descriptor that holds the lock on ``path``, which is created if it is missing.

    None if another process still holds the lock after ``patience`` seconds. A short patience is useful because
    ``is_locked`` takes the lock for an instant. Raises OSError if the file cannot be opened for writing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + patience
    try:
        while not _taken(descriptor, path):
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            time.sleep(0.05)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def unlock(descriptor: int) -> None:
    """Release a lock and close its descriptor."""
    release(descriptor)
    os.close(descriptor)


def release(descriptor: int) -> None:
    """Release a lock, also while another process has inherited the descriptor. The descriptor stays open."""
    holder_file = _holder_files.pop(descriptor, None)
    if holder_file is not None:
        holder_file.unlink(missing_ok=True)
    else:
        with suppress(OSError):  # closing the last descriptor releases it too
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def is_locked(path: Path) -> bool:
    """Whether any process holds the lock on ``path``. This needs no write permission. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return _lives(_holder_file(path))
    finally:
        os.close(descriptor)
    return False


def birth(pid: int) -> int | None:
    """The start time of a process of this machine, in clock ticks since boot; None if it does not run.

    It distinguishes processes whose id the system has reused. Where /proc cannot be read it is 0 for all processes.
    """
    try:
        fields = (PROC / f"{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0 if not (PROC / "self/stat").exists() and exists(pid) else None
    return None if fields[0] in "ZX" else int(fields[19])


def exists(pid: int) -> bool:
    """Whether a process of this machine has the id ``pid``."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def machine() -> str:
    """A name of this machine that changes when it boots, but not with its host name."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return socket.gethostname()


def _taken(descriptor: int, path: Path) -> bool:
    """Try to take the lock; returns whether this process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return _taken_by_name(descriptor, path, error)
    return True


def _taken_by_name(descriptor: int, path: Path, refused: OSError) -> bool:
    """Try to take the lock without ``flock``: remove the holder file of a dead process, then create it exclusively.

    Returns whether this process holds the lock. ``refused`` is the error of ``flock``, for the warning.
    """
    holder_file = _holder_file(path)
    state = os.fstat(descriptor)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deciding:
        # Without this, a process could remove the file of one that took a dead holder's place a moment before. The name
        # belongs to one process of the machine, and the kernel frees it when the process ends.
        try:
            deciding.bind(f"\0spdf-lock-{os.getuid()}-{state.st_dev}-{state.st_ino}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        if _lives(holder_file):
            return False
        remove_leftovers(holder_file)
        holder_file.unlink(missing_ok=True)
        try:
            # The file has its content when it appears, so that no reader takes a writer for dead.
            with atomic_file(holder_file, publish=rename_new) as file:
                json.dump({"host": machine(), "pid": os.getpid(), "birth": birth(os.getpid())}, file)
        except FileExistsError:
            return False
    _holder_files[descriptor] = holder_file
    print(
        f"WARNING: the file system of {path.parent} has no file locks ({refused.strerror}); "
        "start no second process there from another machine",
        file=sys.stderr,
    )
    return True


def _holder_file(path: Path) -> Path:
    """The file that names the holder of the lock on ``path``, on a file system without locks."""
    return path.with_name(f".{path.name.lstrip('.')}.holder")


def _lives(holder_file: Path) -> bool:
    """Whether the process that a holder file names is running on this machine."""
    with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
        holder = json.loads(holder_file.read_text(encoding="utf-8"))
        if holder["host"] in (machine(), socket.gethostname()):  # older versions wrote the host name
            return holder["birth"] is not None and birth(holder["pid"]) == holder["birth"]
    return False
