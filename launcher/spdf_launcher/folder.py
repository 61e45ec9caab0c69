"""Writes the files of a workflow's folder atomically. spdf_dist.workflow_folder defines the format."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spdf_dist.base import atomic_files


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def digest(value: Any) -> str:
    """sha256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file atomically, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_files.write_text(path, text)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON atomically, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_files.write_json(path, value, indent=2)


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON line; it is on disk when this returns."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a killed writer left an incomplete line
                file.write(b"\n")
        file.write(json.dumps(value).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, without broken lines. Raises PermissionError for one that may not be read."""
    try:
        return objects(path.read_text(encoding="utf-8", errors="replace"))
    except PermissionError:
        raise
    except OSError:
        return []


def objects(text: str) -> list[dict[str, Any]]:
    """The lines of a text that are JSON objects."""
    found = []
    for line in text.splitlines():
        with suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                found.append(value)
    return found


def tail(path: Path, reach: int) -> str:
    """The text in the last ``reach`` bytes of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - reach))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
