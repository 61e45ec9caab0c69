"""Files that a file system does not map into memory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from spdf_dist.config.errors import UserError
from spdf_dist.data.mapping import mapped


def test_a_file_that_cannot_be_mapped_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(bytes(range(8)))
    assert mapped(path, np.uint8).tolist() == list(range(8))
    for number, kind in ((errno.ENODEV, UserError), (errno.ENOMEM, OSError)):

        def refused(*arguments: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(np, "memmap", refused)
        with pytest.raises(kind, match=r"shard\.tar"):
            mapped(path, np.uint8)
