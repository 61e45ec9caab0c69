"""The output of a running workflow: one line per job, rewritten in place on a terminal, repeated at times in a log."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from typing import TextIO

from spdf_dist.base.numbers import clock
from spdf_launcher.progress import Progress

LOG_SECONDS = 30.0
TERMINAL_SECONDS = 0.5


@dataclass
class Line:
    """The line of one job."""

    label: str
    began: float
    shown: float = 0.0
    last: str = ""


class Display:
    """Writes to ``stream``, which may be a terminal or a log. Several jobs may run; a terminal shows them in turn."""

    def __init__(self, stream: TextIO, width: int) -> None:
        self.stream = stream
        self.width = width
        self.terminal = stream.isatty()
        self.lines: dict[str, Line] = {}
        self.turned = 0.0

    def job(self, number: int, count: int, job_id: str) -> None:
        """Begin the line of job ``number`` of ``count``."""
        label = f"[{number:>{len(str(count))}}/{count}] {job_id:<{self.width}}"
        self.lines[job_id] = Line(label, time.monotonic())

    def note(self, job_id: str, state: str, progress: Progress | None) -> None:
        """Show the job's current state."""
        line, now = self.lines[job_id], time.monotonic()
        if self.terminal:
            oldest = min(self.lines.values(), key=lambda each: each.shown)
            if line is not oldest or now - self.turned < TERMINAL_SECONDS:
                return
            self.turned = now
        elif line.last == state and now - line.shown < LOG_SECONDS:
            return
        line.shown, line.last = now, state
        text = f"{line.label}  {state:<8} {clock(now - line.began):>7}"
        self.write(f"{text}  {progress.text()}" if progress else text, final=False)

    def end(self, job_id: str, state: str, detail: str) -> None:
        """Write the job's last line."""
        line = self.lines.pop(job_id)
        took = f" {clock(time.monotonic() - line.began):>7}" if line.last else " " * 8
        self.write(f"{line.label}  {state:<8}{took}  {detail}".rstrip(), final=True)

    def write(self, text: str, final: bool) -> None:
        """Write a line; on a terminal it replaces the last one."""
        if self.terminal:
            columns = shutil.get_terminal_size().columns
            self.stream.write(f"\r\x1b[K{text if final else text[: columns - 1]}")
            if final:
                self.stream.write("\n")
        else:
            self.stream.write(f"{text}\n")
        self.stream.flush()
