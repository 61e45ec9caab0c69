"""Digests of input files and folders, cheap also for terabytes.

A file up to 64 MiB counts by its content. A larger one counts by its size, its modification time and its first and
last MiB. A folder counts by its files; a packed data set (it has an index, which holds the shards' own digests) by that
index; a run folder by the manifest of its newest checkpoint, which holds the digests of the checkpoint's files.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from spdf_launcher.attempts import newest_checkpoint

WHOLE_BYTES = 64 << 20
EDGE_BYTES = 1 << 20
INDEX = "index.json"


def fingerprint(path: Path) -> str:
    """sha256 that stands for the content of ``path``; raises OSError when it cannot be read."""
    if path.is_dir():
        if (path / INDEX).is_file():
            return fingerprint(path / INDEX)
        step = newest_checkpoint(path)
        if step >= 0:  # the run's logs, and texts that were generated in it, are no part of a model
            return fingerprint(path / "checkpoints" / f"step_{step}" / "manifest.json")
        whole = hashlib.sha256()
        for below in sorted(path.rglob("*")):
            if below.is_file():
                whole.update(f"{below.relative_to(path)}\0{fingerprint(below)}\n".encode())
        return whole.hexdigest()
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        edges = hashlib.sha256(f"{size} {path.stat().st_mtime_ns} ".encode())
        edges.update(file.read(EDGE_BYTES))
        file.seek(-EDGE_BYTES, os.SEEK_END)
        edges.update(file.read(EDGE_BYTES))
        return edges.hexdigest()
