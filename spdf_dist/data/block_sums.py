"""Checksums of the blocks of a Megatron token file, whose format has none: ``PREFIX.sums`` beside ``PREFIX.bin``.

The file begins with a line of JSON: sizes, the sha256 of the matching ``.idx`` file, and the sha256 of the sums. Then
follow 8 bytes of blake2b per block of ``BLOCK_BYTES`` of ``.bin``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from spdf_dist.base.atomic_files import atomic_file
from spdf_dist.base.digests import file_digest
from spdf_dist.config.errors import UserError
from spdf_dist.data.mapping import mapped

BLOCK_BYTES = 1 << 14
SUM_BYTES = 8


class BlockSums:
    """The sums of one token file, which remember the blocks that were already compared.

    Raises:
        UserError: the file of sums is damaged or belongs to another ``.bin``.
        OSError: there is no file of sums.
    """

    def __init__(self, prefix: Path, index_sha256: str, size: int) -> None:
        self._tokens, path = Path(f"{prefix}.bin"), Path(f"{prefix}.sums")
        content = path.read_bytes()
        header, _, sums = content.partition(b"\n")
        if header != sums_header(index_sha256, size, sums) or len(sums) != SUM_BYTES * block_count(size):
            raise UserError(
                f"{path} is damaged, or of another {self._tokens.name}; if the tokens are known to be good, remove it "
                "and write it again with `spdf data verify`"
            )
        self._sums = np.frombuffer(sums, np.uint8).reshape(-1, SUM_BYTES)
        self._compared = np.zeros(len(self._sums), bool)
        self._content = mapped(self._tokens, np.uint8)

    @classmethod
    def of(cls, prefix: Path, index_sha256: str, size: int) -> BlockSums | None:
        """The sums beside a token file; None without a file of sums."""
        return cls(prefix, index_sha256, size) if Path(f"{prefix}.sums").is_file() else None

    def check(self, start: int, stop: int) -> None:
        """Compare the blocks of the bytes ``start ... stop - 1`` with their sums. Each block is compared only once.

        Raises UserError for a damaged block.
        """
        for block in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)):
            if not self._compared[block]:
                if sum_of(self._content, block) != self._sums[block].tobytes():
                    raise UserError(
                        f"{self._tokens} is damaged: the bytes from {block * BLOCK_BYTES:,} on differ from its file of "
                        "sums; copy it again"
                    )
                self._compared[block] = True


def write_sums(prefix: Path) -> Path:
    """Write the sums of the present content of ``PREFIX.bin`` and return the path of their file."""
    content = mapped(Path(f"{prefix}.bin"), np.uint8)
    sums = b"".join(sum_of(content, block) for block in range(block_count(len(content))))
    path = Path(f"{prefix}.sums")
    with atomic_file(path, "wb") as file:
        file.write(sums_header(file_digest(Path(f"{prefix}.idx")), len(content), sums) + b"\n" + sums)
    return path


def sums_header(index_sha256: str, size: int, sums: bytes) -> bytes:
    """The first line of a file of sums."""
    header = {
        "format": "spdf-block-sums",
        "version": 1,
        "block_bytes": BLOCK_BYTES,
        "bin_bytes": size,
        "idx_sha256": index_sha256,
        "sums_sha256": hashlib.sha256(sums).hexdigest(),
    }
    return json.dumps(header).encode()


def block_count(size: int) -> int:
    """Number of blocks of a file of ``size`` bytes."""
    return -(-size // BLOCK_BYTES)


def sum_of(content: np.ndarray, block: int) -> bytes:
    """The checksum of one block of a file's bytes."""
    part = content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
    return hashlib.blake2b(part.data, digest_size=SUM_BYTES).digest()
