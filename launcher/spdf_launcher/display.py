"""The output of a running workflow: one line per job, rewritten in place on a terminal, repeated at times in a log."""

from __future__ import annotations

import shutil
import time
from typing import TextIO

from spdf_launcher.progress import Progress, duration

LOG_SECONDS = 30.0
TERMINAL_SECONDS = 0.5


class Display:
    """Writes to ``stream``, which may be a terminal or a log."""

    def __init__(self, stream: TextIO, width: int) -> None:
        self.stream = stream
        self.width = width
        self.terminal = stream.isatty()
        self.label = ""
        self.began = 0.0
        self.shown = 0.0
        self.last = ""

    def job(self, number: int, count: int, job_id: str) -> None:
        """Begin the line of job ``number`` of ``count``."""
        self.label = f"[{number:>{len(str(count))}}/{count}] {job_id:<{self.width}}"
        self.began = time.monotonic()
        self.shown = 0.0
        self.last = ""

    def note(self, state: str, progress: Progress | None) -> None:
        """Show the job's current state."""
        elapsed = time.monotonic() - self.began
        if self.terminal:
            if time.monotonic() - self.shown < TERMINAL_SECONDS:
                return
        elif self.last == state and time.monotonic() - self.shown < LOG_SECONDS:
            return
        self.shown, self.last = time.monotonic(), state
        text = f"{self.label}  {state:<8} {duration(elapsed):>7}"
        self.line(f"{text}  {progress.text()}" if progress else text, final=False)

    def end(self, state: str, detail: str) -> None:
        """Write the job's last line."""
        elapsed = time.monotonic() - self.began
        took = f" {duration(elapsed):>7}" if self.last else " " * 8
        self.line(f"{self.label}  {state:<8}{took}  {detail}".rstrip(), final=True)

    def line(self, text: str, final: bool) -> None:
        """Write a line; on a terminal it replaces the last one."""
        if self.terminal:
            columns = shutil.get_terminal_size().columns
            self.stream.write(f"\r\x1b[K{text if final else text[: columns - 1]}")
            if final:
                self.stream.write("\n")
        else:
            self.stream.write(f"{text}\n")
        self.stream.flush()
