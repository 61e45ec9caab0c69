"""Writes a file or a folder atomically: readers see all of it or nothing.

The content is written to a temporary entry beside the target, forced to the disk, and renamed. The entry has an
unguessable name and is created exclusively, so that two writers never share one and no prepared link is followed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

RANDOM_PART = r"\.[0-9a-f]{16}\.tmp"
TEMPORARY = re.compile(rf"\..*{RANDOM_PART}", re.DOTALL)
"""Pattern of the names that `temporary_beside` makes."""
LONGEST_STEM = 48
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Errors of file systems without fsync for folders. They are ignored, because the files have been synced."""


def temporary_beside(path: Path) -> Path:
    """An unguessable name in the folder of ``path``, for content that will be renamed to ``path``."""
    return path.with_name(f".{stem_of(path)}.{secrets.token_hex(8)}.tmp")


def stem_of(path: Path) -> str:
    """The part of a temporary name that tells its target. It is the name, or for a long name its start and a digest."""
    if len(path.name) <= LONGEST_STEM:
        return path.name
    return f"{path.name[: LONGEST_STEM - 9]}-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}"


def is_temporary(path: Path) -> bool:
    """Whether the name has the form of ``temporary_beside``."""
    return TEMPORARY.fullmatch(path.name) is not None


def remove_temporaries(folder: Path) -> None:
    """Delete the temporary entries that killed writers left in ``folder``. No other process may write there."""
    for path in folder.iterdir():
        if is_temporary(path):
            try_to_remove(path)


def remove_leftovers(target: Path) -> None:
    """Delete the temporary entries that killed writers of ``target`` left. No other process may write ``target``."""
    pattern = re.compile(rf"\.{re.escape(stem_of(target))}{RANDOM_PART}")
    for path in target.parent.iterdir():
        if pattern.fullmatch(path.name):
            try_to_remove(path)


def remove(path: Path) -> None:
    """Delete a folder, a file or a link, if it exists. The target of a link stays. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def try_to_remove(path: Path) -> None:
    """As ``remove`` for what nobody reads. On NFS, entries that a process still has open cannot be deleted."""
    with contextlib.suppress(OSError):
        remove(path)


def spare_files() -> contextlib.ExitStack:
    """Open files whose closing frees enough descriptors to delete a folder when the process has none left.

    Raises OSError if too few may be opened.
    """
    with contextlib.ExitStack() as spare:
        for _ in range(3):  # one per level of folders, and one to list it
            spare.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        return spare.pop_all()


def sync(path: Path) -> None:
    """Force a file, or the entries of a folder, to the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC or not path.is_dir():
            raise
    finally:
        os.close(handle)


def open_new(path: Path, mode: str = "w", **how: Any) -> IO[Any]:
    """Create ``path`` and open it; ``how`` are arguments of ``open``. Raises FileExistsError if it exists."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)

    how.setdefault("encoding", None if "b" in mode else "utf-8")
    return open(path, mode, opener=opener, **how)


@contextlib.contextmanager
def atomic_file(
    path: Path, mode: str = "w", *, publish: Callable[[Path, Path], object] = Path.replace, **how: Any
) -> Iterator[IO[Any]]:
    """A new file that becomes ``path`` if the block ends without an exception; otherwise it is deleted.

    Args:
        path: the file to write.
        mode: ``w`` (UTF-8) or ``wb``.
        publish: gives the temporary file, its first argument, the name ``path``; by default it replaces ``path``.
        how: further arguments of ``open``.

    Raises:
        OSError: the file cannot be written.
    """
    aside = temporary_beside(path)
    try:
        with open_new(aside, mode, **how) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        publish(aside, path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # after a success it does not exist
            aside.unlink(missing_ok=True)


def rename_new(aside: Path, path: Path) -> None:
    """Rename a file to ``path`` without replacing anything. Raises FileExistsError if ``path`` exists."""
    try:
        os.link(aside, path, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # without hard links, a check followed by a rename is the best that is possible
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        aside.rename(path)
    else:
        aside.unlink()


def rename_synced(aside: Path, path: Path) -> None:
    """Rename a folder to ``path`` and force this to the disk. It has its old name again if that fails with OSError."""
    aside.rename(path)
    try:
        sync(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            path.rename(aside)
        raise


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder that becomes ``path`` if the block ends without an exception; otherwise it is deleted.

    The block must force its files to the disk. ``path`` must be absent or an empty folder. Of two writers one succeeds.

    Raises OSError (ENOTEMPTY or EEXIST if ``path`` was taken in the meantime).
    """
    aside = temporary_beside(path)
    spare = spare_files()
    try:
        aside.mkdir()
        yield aside
        sync(aside)
        rename_synced(aside, path)
    finally:
        spare.close()
        shutil.rmtree(aside, ignore_errors=True)  # after a success it does not exist


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically. Raises OSError."""
    with atomic_file(path, "wb") as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically, without converting line ends. Raises OSError."""
    with atomic_file(path, newline="") as file:
        file.write(text)


def write_json(path: Path, value: Any, indent: int = 1) -> None:
    """Write a value as indented JSON atomically. Raises OSError."""
    write_text(path, json.dumps(value, indent=indent) + "\n")
