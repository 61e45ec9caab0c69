"""Errors that end a command with a message instead of a traceback, and their exit codes."""

from __future__ import annotations

EXIT_BAD_INPUT = 2
EXIT_NON_FINITE = 3
EXIT_STOPPED = 75


class SpdfError(Exception):
    """A failure that the command line reports in one line; ``exit_code`` ends the process."""

    exit_code = 1


class UserError(SpdfError):
    """A mistake in a file, a config or an argument: what is wrong, where, what to do. Exit code 2, never retried."""

    exit_code = EXIT_BAD_INPUT


class NonFiniteError(SpdfError):
    """A loss or gradient is NaN or infinite; raised on every rank before the update. Exit code 3, never retried."""

    exit_code = EXIT_NON_FINITE


class DivergedError(SpdfError):
    """Training does not recover: too many updates in a row were left out. Exit code 3, never retried."""

    exit_code = EXIT_NON_FINITE


class Stopped(SpdfError):
    """A signal asked for a stop and the state is saved. Exit code 75: start the same command again to go on."""

    exit_code = EXIT_STOPPED
