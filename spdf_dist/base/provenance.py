"""Provenance of a result: versions of the packages that affect it, and the commit of the checkout that is running."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("spdf-dist", "spdf", "torch", "numpy", "deepspeed", "megatron-core", "safetensors", "sentencepiece")
"""Distributions that affect results. ``spdf`` is an older name of the trainer."""


@functools.cache
def versions() -> dict[str, str]:
    """Versions by package name, read without importing the packages. Packages that are not installed are omitted."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout, followed by ``+`` if tracked files have changed; None for an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # a parent folder may be another checkout
        return None
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+" if changes else commit


def made_with() -> dict[str, Any]:
    """``versions`` and ``git_commit``, as a result records them."""
    return {"versions": versions(), "git_commit": git_commit()}
