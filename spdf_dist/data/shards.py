"""The format of a packed folder: tar shards with members of equal size, and ``index.json``.

A member is one packed sequence: a ``.npy`` array of ``seq_len + 1`` token ids, named by its number in the folder. All
members of a folder have the same size, and member ``i`` of a shard starts at byte ``i * stride``. Therefore the index
needs no table of offsets, and a shard can be read as one strided array. Any tar or WebDataset reader can read shards.

webdataset's TarWriter writes the shards. Two things are added. The group name in a member's header is the digest of its
content. The padding to tarfile's record size is cut off, so that the size of a shard follows from its members.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import os
import sys
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spdf_dist.base.digests import file_digest, sealed

INDEX_FILE = "index.json"
TOKENIZER_FOLDER = "tokenizer"
SCHEMA_VERSION = 1
SHARD_BYTES = 128 << 20
BATCH_SEQUENCES = 512
TAR_BLOCK = 512
DIGEST_BYTES = 8
DIGEST_OFFSET = 297
"""Offset of the group name in a tar header. It contains the digest of the member's content, in hex."""
DIGEST_RULE = "blake2b of the member, 8 bytes, in hex, as the group name in its tar header"


def token_dtype(vocab_size: int) -> str:
    """The smallest dtype for all ids of a vocabulary: ``uint16`` or ``uint32``."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


@dataclass(frozen=True)
class MemberLayout:
    """Position of a sequence in a shard: ``data_bytes`` at ``number_in_shard * stride + data_offset``. In bytes."""

    data_offset: int
    data_bytes: int
    stride: int

    @classmethod
    def of(cls, seq_len: int, dtype: str) -> MemberLayout:
        """The layout of sequences of ``seq_len + 1`` ids."""
        header = len(npy_header(seq_len, dtype))
        data = (seq_len + 1) * np.dtype(dtype).itemsize
        blocks = -(-(header + data) // TAR_BLOCK)
        return cls(data_offset=TAR_BLOCK + header, data_bytes=data, stride=TAR_BLOCK * (1 + blocks))

    def shard_bytes(self, sequences: int) -> int:
        """Bytes of a shard with this number of sequences."""
        return sequences * self.stride + 2 * TAR_BLOCK

    def sequences_per_shard(self) -> int:
        """Number of sequences in a full shard."""
        return max(1, SHARD_BYTES // self.stride)


@dataclass(frozen=True)
class ShardEntry:
    """A shard in the index."""

    file: str
    sequences: int
    bytes: int
    sha256: str


def npy_header(seq_len: int, dtype: str) -> bytes:
    """The ``.npy`` header of one sequence."""
    header = io.BytesIO()
    description = {"descr": np.dtype(dtype).newbyteorder("<").str, "fortran_order": False, "shape": (seq_len + 1,)}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


def content_digest(content: bytes | memoryview) -> str:
    """The digest (hex) of a member's content. It is short, because it detects damage, not manipulation."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).hexdigest()


@functools.cache
def tar_writer() -> Any:
    """webdataset's TarWriter, without the package's own imports.

    The package imports torch, which costs each process that packs a second and 160 MB. Its module ``writer`` does not.
    """
    if "webdataset" in sys.modules:
        return importlib.import_module("webdataset.writer").TarWriter
    found = importlib.util.find_spec("webdataset")
    assert found is not None and found.submodule_search_locations is not None
    package = types.ModuleType("webdataset")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["webdataset"] = package
    try:
        return importlib.import_module("webdataset.writer").TarWriter
    finally:  # a later `import webdataset` imports all of it
        for name in [name for name in sys.modules if name.split(".")[0] == "webdataset"]:
            del sys.modules[name]


def write_shard(
    path: Path, first: int, sequences: int, seq_len: int, dtype: str, read: Callable[[int, int], np.ndarray]
) -> ShardEntry:
    """Write sequences ``first ... first + sequences - 1`` of the folder into one shard.

    Args:
        read: ``(start, count) -> ids [count]``, from the token stream.

    Raises:
        OSError: the file cannot be written.
    """
    size = MemberLayout.of(seq_len, dtype).shard_bytes(sequences)
    header = npy_header(seq_len, dtype)
    little = np.dtype(dtype).newbyteorder("<")
    with path.open("wb") as file:
        # The headers do not depend on the time, the user or the machine.
        with tar_writer()(file, user="", mode=0o644, mtime=0, encoder=False) as shard:
            for start in range(first, first + sequences, BATCH_SEQUENCES):
                count = min(BATCH_SEQUENCES, first + sequences - start)
                ids = read(start * seq_len, count * seq_len + 1).astype(little, copy=False)
                # The first token of a sequence is the last token of the previous one.
                rows = np.lib.stride_tricks.sliding_window_view(ids, seq_len + 1)[::seq_len]
                for number, row in enumerate(rows, start):
                    member = header + row.tobytes()
                    shard.group = content_digest(member)
                    shard.write({"__key__": f"{number:012d}", "npy": member})
        file.truncate(size)
        file.flush()
        os.fsync(file.fileno())
    return ShardEntry(path.name, sequences, size, file_digest(path))


def write_index(folder: Path, content: dict[str, Any]) -> None:
    """Write ``index.json`` with its own digest into ``folder``, and sync it to disk."""
    with (folder / INDEX_FILE).open("wb") as file:
        file.write(sealed({"schema_version": SCHEMA_VERSION, **content}))
        file.flush()
        os.fsync(file.fileno())


def member_rule(seq_len: int, dtype: str) -> dict[str, Any]:
    """The description of the members in the index."""
    layout = asdict(MemberLayout.of(seq_len, dtype))
    return {"name": "sequence number, 12 digits, .npy", **layout, "digest": DIGEST_RULE}
