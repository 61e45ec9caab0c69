"""Digests of input files and folders, fast also for terabytes.

A file up to 64 MiB is identified by its content. A larger file is identified by its size, its modification time and its
first and last MiB. A folder is identified by its files, with two exceptions. A packed data set is identified by its
index, which holds the digests of the shards. A run folder is identified by the manifest of its newest checkpoint, which
holds the digests of the checkpoint's files.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from spdf_dist.base.digests import file_digest
from spdf_launcher.attempts import newest_checkpoint

WHOLE_BYTES = 64 << 20
EDGE_BYTES = 1 << 20
INDEX = "index.json"


def fingerprint(path: Path) -> str:
    """sha256 that identifies the content of ``path``. Raises OSError if it cannot be read."""
    if path.is_dir():
        if (path / INDEX).is_file():
            return fingerprint(path / INDEX)
        step = newest_checkpoint(path)
        if step >= 0:  # logs and generated texts in the run folder are not part of the model
            return fingerprint(path / "checkpoints" / f"step_{step}" / "manifest.json")
        whole = hashlib.sha256()
        for below in sorted(path.rglob("*")):
            if below.is_file():
                whole.update(f"{below.relative_to(path)}\0{fingerprint(below)}\n".encode())
        return whole.hexdigest()
    size = path.stat().st_size
    if size <= WHOLE_BYTES:
        return file_digest(path)
    with path.open("rb") as file:
        edges = hashlib.sha256(f"{size} {path.stat().st_mtime_ns} ".encode())
        edges.update(file.read(EDGE_BYTES))
        file.seek(-EDGE_BYTES, os.SEEK_END)
        edges.update(file.read(EDGE_BYTES))
        return edges.hexdigest()
