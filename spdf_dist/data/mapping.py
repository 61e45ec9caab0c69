"""Maps files of tokens into memory."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from spdf_dist.config.errors import UserError


def mapped(path: Path, dtype: DTypeLike) -> np.memmap:
    """The content of a file as a read-only array of ``dtype``.

    Raises:
        UserError: the file system does not map files.
        OSError: another failure; its ``filename`` is the path.
    """
    try:
        return np.memmap(path, dtype, "r")
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise UserError(f"{path}: its file system does not map files into memory; copy it to another one") from None
        raise OSError(error.errno, error.strerror, str(path)) from None
