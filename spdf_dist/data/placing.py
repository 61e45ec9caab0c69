"""Puts a finished file where it belongs, and never over another one."""

from __future__ import annotations

import filecmp
from pathlib import Path

from spdf_dist.config.errors import UserError


def made(folder: Path) -> Path:
    """``folder``, made when missing.

    Raises:
        UserError: a file is in its place, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"{folder} is a file, and a folder is needed there; name another") from error
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be made: {error.strerror}; name another") from error
    return folder


def aside_of(target: Path) -> Path:
    """Where to write ``target`` until it is whole; its folder is made.

    Raises:
        UserError: the folder cannot be made.
    """
    return made(target.parent) / f".{target.name}.tmp"


def place(aside: Path, target: Path) -> None:
    """Rename ``aside`` to ``target``; a target with this very content stays.

    Raises:
        UserError: ``target`` exists with other content; ``aside`` is removed.
    """
    if not target.exists():
        aside.rename(target)
        return
    same = target.is_file() and filecmp.cmp(aside, target, shallow=False)
    aside.unlink()
    if not same:
        raise UserError(f"{target} exists with other content; remove it or name another file")
