"""Progress bars on a terminal, and progress lines in a file or a pipe."""

from __future__ import annotations

import os
import sys
import time
from typing import IO, Any

from tqdm import tqdm

LINE_SECONDS = 30.0
"""Time between two lines where standard error is not a terminal. Shorter work has none."""


class ProgressBar(tqdm):
    """tqdm on standard error and on the monotonic clock: when the system's clock is set, times stay right.

    The arguments are those of tqdm. Where the file is not a terminal, the bar is a line every LINE_SECONDS.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        file: Any = options.setdefault("file", sys.stderr)
        if not file.isatty():
            options = {"mininterval": LINE_SECONDS, "delay": LINE_SECONDS, "miniters": 1} | options
            options |= {"file": LineWriter(file), "leave": True, "dynamic_ncols": False}
        elif not columns(file):
            options |= {"dynamic_ncols": False, "ncols": 80, "nrows": 24}
        super().__init__(*args, **options)
        if not self.disable:
            self._time = time.monotonic
            self.start_t = self.last_print_t = self._time()


def columns(file: IO[str]) -> int:
    """The width of a terminal in characters; 0 if it is not known, as in a container's terminal without a size."""
    try:
        return os.get_terminal_size(file.fileno()).columns
    except (OSError, ValueError):
        return 0


class LineWriter:
    """A text file to which tqdm writes each state of a bar as a line, once."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._last = ""

    def write(self, text: str) -> None:
        line = text.strip()
        if line and line != self._last:
            self._file.write(f"{line}\n")
            self._last = line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
