"""Errors that end a command with a one-line message instead of a traceback, and their exit codes."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

EXIT_BAD_INPUT = 2
EXIT_NON_FINITE = 3
EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130
"""Of commands that save nothing."""


class SpdfError(Exception):
    """A failure that the command line reports in one line. The process exits with ``exit_code``."""

    exit_code = 1


class UserError(SpdfError):
    """A mistake in a file, a config or an argument. The message says what is wrong, where, and what to do.

    Exit code 2; the launcher does not retry.
    """

    exit_code = EXIT_BAD_INPUT


class NoPermissionError(UserError):
    """A path that exists and that this process may not read or write, or cannot because of a failure of the machine."""


PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of the file system for a path without permission."""
UNREACHABLE = (
    *PERMISSION,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
)
"""Errors of the file system for a path that a user gave and may not enter, or that no file can have."""


MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENOMEM, errno.EAGAIN),
    *(errno.EMFILE, errno.ENFILE, errno.EBUSY, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENXIO, errno.ENOLCK),
)
"""Errors of the machine or the file system, whatever the path."""
OS_ERROR = re.compile(r"(?:\(os error |\[Errno )(\d+)[)\]]")
"""An error number in the messages of libraries, as safetensors and SentencePiece write it."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that led to it, at most ten."""
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def exit_code_of(error: BaseException) -> int:
    """The exit code of a command that ends with ``error``. The same refusal of a path has one code in every command.

    It is 2 if ``error`` or its cause is a lack of permission, 1 if it is a failure of the machine. Otherwise it is the
    error's own code, or that of a path that cannot be used as it was given.
    """
    own = error.exit_code if isinstance(error, SpdfError) else SpdfError.exit_code
    if own not in (SpdfError.exit_code, EXIT_BAD_INPUT):
        return own
    for each in causes(error):
        number = error_number(each)
        if number in PERMISSION:
            return EXIT_BAD_INPUT
        if number in MACHINE:
            return SpdfError.exit_code
    named = isinstance(error, OSError) and isinstance(error.filename, str | bytes)
    return EXIT_BAD_INPUT if named and error_number(error) in UNREACHABLE else own


def error_number(error: BaseException) -> int | None:
    """The error number of the operating system in an exception, or in the message of a library; None without one."""
    if isinstance(error, OSError):
        return error.errno
    found = OS_ERROR.search(str(error))
    return None if found is None else int(found[1])


@contextlib.contextmanager
def names_file(path: Path) -> Iterator[None]:
    """Put ``path`` into an OSError of the block that names no file, such as that of a failed read."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


class NonFiniteError(SpdfError):
    """A loss or gradient is NaN or infinite. It is raised on every rank, before the update.

    Exit code 3; the launcher does not retry.
    """

    exit_code = EXIT_NON_FINITE


class DivergedError(SpdfError):
    """Too many consecutive updates were skipped. Exit code 3; the launcher does not retry."""

    exit_code = EXIT_NON_FINITE


class Stopped(SpdfError):
    """A signal requested a stop, and the state is saved. Exit code 75: the same command continues the run."""

    exit_code = EXIT_STOPPED
