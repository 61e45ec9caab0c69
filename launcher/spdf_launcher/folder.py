"""A workflow's folder: where things lie, written aside and renamed.

journal.jsonl               what the launchers did (see journal.py)
workflow.yaml  plan.json    the workflow as it was read, and its jobs
jobs/NAME[/VARIANT][/CELL]/
    job.json                what the job runs, written by the launcher
    attempts.jsonl          a line when an attempt starts and one when it ends
    manifest.json           how the job ended and what it made
    job.log                 output of all attempts
    lock                    held while the job runs
    run/ or out/            what it makes
slurm/                      batch scripts and their logs
.replaced/N/                results whose inputs have changed since
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spdf_dist.base import atomic_files
from spdf_dist.config.errors import UserError

DONE, FAILED, CANCELLED = "done", "failed", "cancelled"
"""How a manifest says that a job ended."""


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def digest(value: Any) -> str:
    """sha256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_files.write_text(path, text)


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_files.write_json(path, value, indent=2)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None when there is none or it is not whole."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Add one JSON line, on disk before this returns."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a writer died in the middle of a line
                file.write(b"\n")
        file.write(json.dumps(value).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; broken lines are left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    objects = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            objects.append(value)
    return objects


def last_lines(path: Path, reach: int = 65536) -> list[dict[str, Any]]:
    """The JSON objects in the last ``reach`` bytes of a file of JSON lines, without those cut off at either end."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - reach))
            lines = file.read().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                found.append(value)
    return found


@dataclass(frozen=True)
class JobFolder:
    """The files of one job."""

    path: Path

    @property
    def spec(self) -> Path:
        return self.path / "job.json"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "job.log"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def exit_code(self) -> Path:
        """Where rank 0 writes the trainer's exit code."""
        return self.path / "exit_code"

    @property
    def run_dir(self) -> Path:
        """Where a training job keeps its run."""
        return self.path / "run"

    @property
    def out(self) -> Path:
        """Where any other job writes."""
        return self.path / "out"

    def status(self) -> str | None:
        """How the job ended: done, failed, cancelled; None while it has not."""
        manifest = read_json(self.manifest)
        return None if manifest is None else str(manifest.get("status"))

    def is_done(self, key: str) -> bool:
        """Whether the job is done with exactly the inputs that ``key`` stands for."""
        manifest = read_json(self.manifest) or {}
        return manifest.get("status") == DONE and manifest.get("key") == key


@contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Turns errors of the file system into a UserError about ``what``."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"{what}: {error.strerror or error}" + named(error, what)) from None


def named(error: OSError, what: str) -> str:
    """The file that an error is about, where ``what`` does not say it."""
    return f" ({error.filename})" if error.filename is not None and str(error.filename) not in what else ""


def job_folder(root: Path, job_id: str) -> JobFolder:
    """The folder of job ``job_id`` in the workflow's folder ``root``; UserError when it would lie outside of that."""
    if not job_id or Path(job_id).is_absolute() or ".." in Path(job_id).parts:
        raise UserError(f"'{job_id}' is no name of a job: its folder would lie outside of {root / 'jobs'}")
    return JobFolder(root / "jobs" / job_id)
