"""Finds complete checkpoints by their content, and deletes the remains of interrupted saves and deletions."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from spdf_dist.base.atomic_files import is_temporary, try_to_remove
from spdf_dist.base.rank_variables import is_rank_zero
from spdf_dist.checkpoint.manifest import MANIFEST, is_manifest, problem, whole_manifest
from spdf_dist.config.errors import NoPermissionError, UserError

ASIDE = ".tmp"
"""Suffix of folders that are being written or deleted. They are never read."""


def is_whole(path: Path) -> bool:
    """Whether ``path`` is a complete checkpoint: its manifest is valid, and all files have their recorded sizes."""
    return problem(path) is None


def whole_checkpoints(root: Path) -> list[Path]:
    """The complete checkpoints directly under ``root``, lowest step first; empty if the folder does not exist."""
    if not root.is_dir():
        return []
    found = []
    for folder in root.iterdir():
        if not folder.is_dir() or folder.name.endswith(ASIDE):
            continue
        try:
            step = whole_manifest(folder).step
        except NoPermissionError:
            raise
        except UserError:
            continue
        found.append((step, folder.name == f"step_{step}", folder.name, folder))
    return [folder for *_, folder in sorted(found)]


def latest(root: Path) -> Path | None:
    """The complete checkpoint under ``root`` with the highest step in its manifest; None if there is none."""
    found = whole_checkpoints(root)
    return found[-1] if found else None


def damaged(root: Path) -> list[str]:
    """The error of each checkpoint under ``root`` that is not complete, lowest step first.

    A checkpoint is a folder with a manifest or with the name ``step_N``. A save renames a complete folder into place,
    so such a folder has been damaged later, or was copied in part. ``latest`` skips it. A run that continues should
    report it, or stop if there is no other checkpoint.
    """
    return [reason for _, reason in damaged_folders(root)]


def damaged_folders(root: Path) -> list[tuple[Path, str]]:
    """The folders of ``damaged`` with their errors."""
    if not root.is_dir():
        return []
    folders = [
        path
        for path in root.iterdir()
        if path.is_dir()
        and not path.name.endswith(ASIDE)
        and ((path / MANIFEST).exists() or (step_in_name(path)[0] >= 0 and has_entries(path)))
    ]
    folders.sort(key=step_in_name)
    found = [(folder, reason) for folder in folders if (reason := problem(folder)) is not None]
    return [(folder, reason) for folder, reason in found if folder.exists()]  # the others were deleted meanwhile


def has_entries(folder: Path) -> bool:
    """Whether a folder contains anything; False if it has been deleted meanwhile."""
    try:
        return any(folder.iterdir())
    except FileNotFoundError:
        return False


def step_in_name(folder: Path) -> tuple[int, str]:
    """A key that sorts folders by the step in their names, without their manifests; other names come first."""
    match = re.fullmatch(r"step_(\d{1,18})", folder.name)
    return (-1 if match is None else int(match[1]), folder.name)


def remove_remains(root: Path) -> None:
    """Delete what interrupted saves and deletions left among a run's checkpoints, also those of older versions."""
    for path in root.iterdir():
        if is_temporary(path) or (path.name.startswith("step_") and path.name.endswith(ASIDE)):
            try_to_remove(path)


def resolve(path: Path | str) -> Path:
    """The checkpoint for ``path``: itself, or the newest of a run folder or of its ``checkpoints``.

    If a later one is damaged, rank 0 prints a warning on stderr.

    Raises:
        UserError: there is none, or ``path`` is an incomplete one; the message says what is wrong.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"the checkpoint {path} does not exist")
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if (root == path and (path / MANIFEST).is_file()) or is_manifest(path / MANIFEST):
        reason = problem(path)
        if reason is not None:
            raise UserError(reason)
        return path
    found = latest(root)
    broken = damaged_folders(root)
    if found is not None:
        later = [reason for folder, reason in broken if step_in_name(folder) > step_in_name(found)]
        if later and is_rank_zero():
            print(f"WARNING: {later[-1]}; {found} is used", file=sys.stderr)
        return found
    if broken:
        raise UserError(f"{path} holds no complete checkpoint: {broken[-1][1]}")
    raise UserError(f"{path} holds no checkpoint: give a step_N folder, a run folder or its checkpoints folder")
