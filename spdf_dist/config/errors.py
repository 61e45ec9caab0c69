"""Errors that end a command with a one-line message instead of a traceback, and their exit codes."""

from __future__ import annotations

import contextlib
import errno
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
    """A path that exists and that this process may not read or write."""


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


def exit_code_of(error: OSError) -> int:
    """The exit code of a command that ends with ``error``: 2 for a path that cannot be used as it was given, else 1."""
    named = isinstance(error.filename, str | bytes)
    return EXIT_BAD_INPUT if named and error.errno in UNREACHABLE else SpdfError.exit_code


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
