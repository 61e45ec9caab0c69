"""Writes files that appear only when complete and never replace a file with other content."""

from __future__ import annotations

import contextlib
import filecmp
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from spdf_dist.base.atomic_files import open_new, rename_new, temporary_beside
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


@contextlib.contextmanager
def placed(target: Path, mode: str = "w", **how: Any) -> Iterator[IO[Any]]:
    """A new file that becomes ``target`` when the block ends without an exception. Its folder is made if missing.

    A target with the same content is kept. ``mode`` and ``how`` are arguments of ``atomic_file``.

    Raises:
        UserError: ``target`` exists with other content, or its folder cannot be made. No temporary file remains.
    """
    aside = temporary_beside(made(target.parent) / target.name)
    try:
        with open_new(aside, mode, **how) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        try:
            rename_new(aside, target)
        except FileExistsError:
            if not target.is_file() or not filecmp.cmp(aside, target, shallow=False):
                raise UserError(f"{target} exists with other content; remove it or name another file") from None
    finally:
        aside.unlink(missing_ok=True)  # it does not exist after a success
