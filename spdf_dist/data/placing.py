"""Writes files that appear only when complete and never replace a file with other content."""

from __future__ import annotations

import filecmp
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from spdf_dist.base.atomic_files import atomic_file, rename_new
from spdf_dist.config.errors import UserError


def made(folder: Path) -> Path:
    """Make ``folder`` unless it exists, and return it.

    Raises:
        UserError: a file has this name, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"{folder} is a file, and a folder is needed there; name another") from error
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be made: {error.strerror}; name another") from error
    return folder


def placed(target: Path, mode: str = "w", **how: Any) -> AbstractContextManager[IO[Any]]:
    """``atomic_file`` that keeps a target with the same content. The folder of ``target`` is made if missing.

    Raises:
        UserError: ``target`` exists with other content, or its folder cannot be made. No temporary file remains.
    """
    return atomic_file(made(target.parent) / target.name, mode, publish=keep_equal, **how)


def keep_equal(aside: Path, target: Path) -> None:
    """Rename ``aside`` to ``target`` unless that exists. Raises UserError if it exists with other content."""
    try:
        rename_new(aside, target)
    except FileExistsError:
        if not target.is_file() or not filecmp.cmp(aside, target, shallow=False):
            raise UserError(f"{target} exists with other content; remove it or name another file") from None
