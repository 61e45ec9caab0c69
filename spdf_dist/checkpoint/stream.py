"""Writes a safetensors file one tensor at a time.

The header of a safetensors file comes first and lists every tensor. The library's own writer therefore needs all of
them in memory at once. This writer reserves space for the header, writes the tensors one by one, and fills in the
header at the end, padded with spaces as the format allows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.uint8): "U8"}


def to_bfloat16(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    """A float32 array rounded to bfloat16 (to nearest, ties to even), as uint16 bits, because numpy has no bfloat16."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(array), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def header_room(keys: Iterable[str], metadata: dict[str, str] | None = None) -> int:
    """An upper bound of the header's size in bytes, for tensors with these keys and at most two dimensions each."""
    extra = len(json.dumps({"__metadata__": metadata}))
    entry = len(json.dumps({"": {"dtype": "BF16", "shape": [1 << 63] * 2, "data_offsets": [1 << 63] * 2}}))
    return -(-(2 + extra + sum(len(key) + entry for key in keys)) // 8) * 8


class SafetensorsStream:
    """A safetensors file that is being written. On exit the context completes it and forces it to the disk.

    ``room`` bytes are reserved for the header (see ``header_room``). Raises OSError, for example on a full disk.
    """

    def __init__(self, path: Path, room: int, metadata: dict[str, str] | None = None) -> None:
        self.room = room
        self.header: dict[str, dict[str, Any]] = {"__metadata__": dict(metadata)} if metadata else {}
        self.end = 0
        self.file = path.open("wb")
        self.file.write(room.to_bytes(8, "little") + b" " * room)

    def add(self, key: str, array: NDArray[Any], dtype: str = "float32") -> None:
        """Append a float32 or uint8 array. With ``dtype`` `bfloat16`, a float32 array is rounded to it."""
        if key in self.header:
            raise ValueError(f"{key} is written twice")
        array = to_bfloat16(array) if dtype == "bfloat16" else np.ascontiguousarray(array)
        if array.size:
            self.file.write(array.data.cast("B"))
        stop = self.end + array.nbytes
        self.header[key] = {
            "dtype": "BF16" if dtype == "bfloat16" else DTYPES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [self.end, stop],
        }
        self.end = stop

    def complete(self) -> None:
        """Fill in the header and force the file to the disk."""
        header = json.dumps(self.header, separators=(",", ":")).encode()
        if len(header) > self.room:
            raise ValueError(f"header of {len(header)} bytes, room for {self.room}")
        self.file.seek(8)
        self.file.write(header)
        self.file.flush()
        os.fsync(self.file.fileno())

    def __enter__(self) -> SafetensorsStream:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self.complete()
        finally:
            self.file.close()
