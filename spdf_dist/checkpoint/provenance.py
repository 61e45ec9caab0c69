"""What wrote a checkpoint: versions of the packages that matter, and the git commit of a checkout."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import spdf_dist

PACKAGES = ("spdf", "torch", "numpy", "deepspeed", "megatron-core", "safetensors")


@functools.cache
def versions() -> dict[str, str]:
    """Versions by package name; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout that this code runs from; None when it runs from an installed wheel."""
    root = Path(spdf_dist.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
