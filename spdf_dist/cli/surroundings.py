"""What a command must not depend on: open standard streams, a live terminal, the files in the current folder."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator

STANDARD_OUTPUT = "standard output"


class Output(io.TextIOWrapper):
    """Standard output whose errors, such as a full disk, name it in their ``filename``."""

    def write(self, text: str, /) -> int:
        with named_as_output():
            return super().write(text)

    def flush(self) -> None:
        with named_as_output():
            super().flush()


@contextlib.contextmanager
def named_as_output() -> Iterator[None]:
    """Put ``STANDARD_OUTPUT`` into an OSError of the block. Raises OSError (BrokenPipeError for a closed pipe)."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, STANDARD_OUTPUT) from None


class Messages(io.TextIOWrapper):
    """Standard error that drops what nobody can take any more, as when the terminal, the reader or the disk is gone.

    A message that cannot be written ends no work.
    """

    def write(self, text: str, /) -> int:
        with contextlib.suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def open_standard_streams() -> None:
    """Open /dev/null in the place of closed standard streams, as daemons and job systems start commands.

    Else the next file that is opened takes the number of a stream, and libraries write their messages into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            stream = open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)  # it closes its file when nothing refers to it
    if type(out := sys.stdout) is io.TextIOWrapper:
        sys.stdout = Output(
            out.buffer, out.encoding, out.errors, line_buffering=out.line_buffering, write_through=out.write_through
        )
    if type(sys.stderr) is io.TextIOWrapper:
        sys.stderr = Messages(
            sys.stderr.buffer, sys.stderr.encoding, "backslashreplace", line_buffering=True, write_through=True
        )


def make_no_warning_an_error() -> None:
    """Show warnings where Python was told to raise them (``PYTHONWARNINGS=error``): libraries warn now and then."""
    if any(action == "error" for action, *_ in warnings.filters):
        warnings.simplefilter("default")


def has_current_folder() -> bool:
    """Whether the current folder exists: without one, libraries end the process in native code."""
    try:
        return bool(os.getcwd())  # noqa: PTH109
    except OSError:
        return False


def keep_own_permissions() -> None:
    """Let this user read and write what the command makes, whatever the umask says of the owner's permissions."""
    os.umask(os.umask(0o077) & 0o077)


def import_nothing_from_here() -> None:
    """Processes that this one starts import no module from the current folder.

    A user's tokenize.py there would replace the standard one in spawned ranks, workers and jobs.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
