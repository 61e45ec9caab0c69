"""The format of a packed folder: tar shards with members of equal size, and ``index.json``.

A member is one packed sequence: a ``.npy`` array of ``seq_len + 1`` token ids, named by its number in the folder. All
members of a folder have the same size, and member ``i`` of a shard starts at byte ``i * stride``. Therefore the index
needs no table of offsets, and a shard can be read as one strided array. Any tar or WebDataset reader can read shards.

webdataset's TarWriter does not write them: it has one group name per file, and here each member's header holds the
digest of its content. It also pads a shard to tarfile's record size, and writes one member at a time.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spdf_dist.base.self_digest import sealed

INDEX_FILE = "index.json"
TOKENIZER_FOLDER = "tokenizer"
SCHEMA_VERSION = 1
SHARD_BYTES = 128 << 20
BATCH_SEQUENCES = 512
TAR_BLOCK = 512
TAR_END = bytes(2 * TAR_BLOCK)
DIGEST_BYTES = 8
DIGEST_OFFSET = 297
"""Offset of the group name in a tar header. It contains the digest of the member's content, in hex."""
DIGEST_RULE = "blake2b of the member, 8 bytes, in hex, as the group name in its tar header"
MEMBER_NAME = "{:012d}.npy"


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
        return sequences * self.stride + len(TAR_END)

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


def content_digest(content: np.ndarray) -> str:
    """The digest (hex) of a member's content (uint8). It is short, because it detects damage, not manipulation."""
    return hashlib.blake2b(content.data, digest_size=DIGEST_BYTES).hexdigest()


def tar_header(number: int, size: int, digest: str) -> bytes:
    """The tar header of sequence ``number``. It does not depend on the time, the user or the machine."""
    member = tarfile.TarInfo(MEMBER_NAME.format(number))
    member.size = size
    member.gname = digest
    return member.tobuf(tarfile.USTAR_FORMAT)


def write_shard(
    path: Path, first: int, sequences: int, seq_len: int, dtype: str, read: Callable[[int, int], np.ndarray]
) -> ShardEntry:
    """Write sequences ``first ... first + sequences - 1`` of the folder into one shard.

    Args:
        read: ``(start, count) -> ids [count]``, from the token stream.

    Raises:
        OSError: the file cannot be written.
    """
    layout = MemberLayout.of(seq_len, dtype)
    header = npy_header(seq_len, dtype)
    digest = hashlib.sha256()
    little = np.dtype(dtype).newbyteorder("<")
    with path.open("wb") as file:
        for start in range(first, first + sequences, BATCH_SEQUENCES):
            count = min(BATCH_SEQUENCES, first + sequences - start)
            ids = read(start * seq_len, count * seq_len + 1).astype(little, copy=False)
            members = np.zeros((count, layout.stride), np.uint8)
            members[:, TAR_BLOCK : layout.data_offset] = np.frombuffer(header, np.uint8)
            # The first token of a sequence is the last token of the previous one.
            overlapping = np.lib.stride_tricks.sliding_window_view(ids, seq_len + 1)[::seq_len]
            members[:, layout.data_offset : layout.data_offset + layout.data_bytes] = np.ascontiguousarray(
                overlapping
            ).view(np.uint8)
            size = len(header) + layout.data_bytes
            heads = b"".join(
                tar_header(start + at, size, content_digest(members[at, TAR_BLOCK : TAR_BLOCK + size]))
                for at in range(count)
            )
            members[:, :TAR_BLOCK] = np.frombuffer(heads, np.uint8).reshape(count, TAR_BLOCK)
            file.write(members.data)
            digest.update(members.data)
        file.write(TAR_END)
        digest.update(TAR_END)
        file.flush()
        os.fsync(file.fileno())
    return ShardEntry(path.name, sequences, layout.shard_bytes(sequences), digest.hexdigest())


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
