"""The journal: one locked JSON-lines file that records the actions of a workflow's launchers.

A process that starts, submits or cancels jobs holds the lock, so a folder has one launcher at a time. An `intent` line
is on disk before each submission to Slurm, and a `submitted` line follows it. If a launcher is killed between the two,
the next one finds the submission by its key in the comments of Slurm's jobs.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from spdf_dist.base.file_locks import is_locked, try_lock, unlock
from spdf_dist.config.errors import UserError
from spdf_launcher.folder import append_line, now, read_lines

FILE = "journal.jsonl"


class Journal:
    """The locked journal of one folder; a context manager that holds the lock."""

    def __init__(self, root: Path) -> None:
        """Take the lock of ``root``. Raises UserError if another launcher holds it."""
        self.path = root / FILE
        descriptor = try_lock(self.path, patience=0.5)
        if descriptor is None:
            raise UserError(
                f"{root}: another launcher is at work there ({holder(root)}); `spdf status {root}` shows it"
            )
        self.descriptor = descriptor
        self.write("launcher", pid=os.getpid(), host=socket.gethostname())

    def write(self, event: str, **content: Any) -> None:
        """Append a line."""
        append_line(self.path, {"time": now(), "event": event, **content})

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        unlock(self.descriptor)


def events(root: Path, *names: str) -> list[dict[str, Any]]:
    """The journal's lines with one of these events, oldest first."""
    return [line for line in read_lines(root / FILE) if line.get("event") in names]


def is_held(root: Path) -> bool:
    """Whether a launcher holds the lock of the folder."""
    return is_locked(root / FILE)


def holder(root: Path) -> str:
    """The launcher that wrote to the journal last, for messages."""
    lines = events(root, "launcher")
    return f"process {lines[-1]['pid']} on {lines[-1]['host']}" if lines else "unknown process"


def require_workflow(root: Path) -> None:
    """Raise UserError unless ``root`` is a workflow's folder."""
    if not (root / FILE).is_file():
        raise UserError(f"{root}: holds no workflow: start one with `spdf run WORKFLOW --dir {root}`")
