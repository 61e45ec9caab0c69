"""What a running workflow says: one line a job, rewritten in place on a terminal, repeated now and then in a log."""

from __future__ import annotations

import shutil
import time
from typing import TextIO

from spdf_launcher.progress import Progress, duration

LOG_SECONDS = 30.0
TERMINAL_SECONDS = 0.5


class Display:
    """Writes to ``stream``; knows whether it is a terminal."""

    def __init__(self, stream: TextIO, width: int) -> None:
        self.stream = stream
        self.width = width
        self.terminal = stream.isatty()
        self.label = ""
        self.began = 0.0
        self.shown = 0.0
        self.last = ""

    def job(self, number: int, count: int, job_id: str) -> None:
        """The line that follows is about job ``number`` of ``count``."""
        self.label = f"[{number:>{len(str(count))}}/{count}] {job_id:<{self.width}}"
        self.began = time.monotonic()
        self.shown = 0.0
        self.last = ""

    def note(self, state: str, progress: Progress | None) -> None:
        """The job's present state."""
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
        """The job's last line."""
        elapsed = time.monotonic() - self.began
        took = f" {duration(elapsed):>7}" if self.last else " " * 8
        self.line(f"{self.label}  {state:<8}{took}  {detail}".rstrip(), final=True)

    def line(self, text: str, final: bool) -> None:
        """Write a line, over the last one on a terminal."""
        if self.terminal:
            columns = shutil.get_terminal_size().columns
            self.stream.write(f"\r\x1b[K{text if final else text[: columns - 1]}")
            if final:
                self.stream.write("\n")
        else:
            self.stream.write(f"{text}\n")
        self.stream.flush()
