"""The attempts of a job: when each started, how it ended, and the number of failures in a row."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spdf_dist.workflow_folder import JobFolder
from spdf_launcher.folder import append_line, now, read_lines

START, COMMAND, END, RESET = "start", "command", "end", "reset"


def newest_checkpoint(run_dir: Path) -> int:
    """The highest step with a checkpoint whose manifest is written; -1 when there is none."""
    steps = [
        int(match.group(1))
        for path in run_dir.glob("checkpoints/step_*/manifest.json")
        if (match := re.fullmatch(r"step_(\d+)", path.parent.name))
    ]
    return max(steps, default=-1)


@dataclass(frozen=True)
class History:
    """A summary of a job's attempts; ``failures`` counts from the last RESET."""

    count: int
    """Attempts."""
    failures: int
    """Failures in a row without a new checkpoint in between; stops by a signal and lost nodes do not count."""
    last_start: dict[str, Any] | None
    last_end: dict[str, Any] | None
    """None while an attempt runs, or when its node was lost."""
    last_command: dict[str, Any] | None
    """The process of the last attempt's command; None before the command starts."""


def history(folder: JobFolder) -> History:
    """Read a job's attempts."""
    count, failures, at_failure = 0, 0, -2
    start: dict[str, Any] | None = None
    end: dict[str, Any] | None = None
    command: dict[str, Any] | None = None
    for line in read_lines(folder.attempts):
        if line.get("event") == RESET:
            failures, at_failure = 0, -2
        elif line.get("event") == START:
            count, start, end, command = count + 1, line, None, None
        elif line.get("event") == COMMAND:
            command = line
        elif line.get("event") == END:
            end = line
            if line.get("outcome") == "failed":
                failures = failures + 1 if line.get("checkpoint", -1) <= at_failure else 1
                at_failure = line.get("checkpoint", -1)
    return History(count, failures, start, end, command)


def record(folder: JobFolder, event: str, **content: Any) -> None:
    """Add a line to a job's attempts."""
    append_line(folder.attempts, {"time": now(), "event": event, **content})
