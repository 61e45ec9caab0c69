"""Reads Megatron-LM's token files (``PREFIX.bin`` and ``PREFIX.idx``) without conversion.

``.idx``: the magic ``MMIDIDX\\0\\0``, version (uint64, 1), token type (uint8), number of pieces and of document bounds
(uint64 each), the pieces' lengths in tokens (int32), their byte offsets in ``.bin`` (int64), the document bounds
(int64). ``.bin``: only the tokens.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import time
from pathlib import Path

import numpy as np

from spdf_dist.config.errors import UserError
from spdf_dist.data.block_sums import BlockSums
from spdf_dist.data.mapping import mapped

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
SCANNED_BYTES = 1 << 30
"""Files up to this size are scanned for ids outside the model's vocabulary when opened. A background thread, which
sleeps most of the time, scans larger files while they are used."""
SCAN_BLOCK_TOKENS = 1 << 22
SCAN_SHARE = 0.1
SAMPLED_BLOCKS, SAMPLE_BYTES = 1024, 4096
"""Number and size of the samples of a .bin file in the data set's digest."""
TOKEN_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


def megatron_prefix(path: str | Path) -> Path | None:
    """The prefix if ``path`` names Megatron files (by prefix, ``.bin`` or ``.idx``), else None."""
    path = Path(path)
    prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    if prefix.is_dir() and path.suffix not in (".bin", ".idx"):
        return None
    return prefix if any(Path(f"{prefix}{suffix}").is_file() for suffix in (".bin", ".idx")) else None


class MegatronDataset:
    """The documents of one ``.bin``/``.idx`` pair, joined and cut into sequences of ``seq_length + 1`` tokens.

    The first token of a sequence is the last token of the previous one. The incomplete sequence at the end is dropped.
    The files do not name their tokenizer. Therefore ids outside ``model_vocab_size`` are an error. The format has no
    checksums. Where there is a file of sums (written by `spdf data verify`), each block is compared when it is first
    read.

    Raises:
        UserError: a file is missing or damaged, is shorter than one sequence, or has an id outside the vocabulary.
    """

    tokenizer_digest: str | None = None
    vocab_size: int | None = None

    def __init__(self, prefix: str | Path, seq_length: int, model_vocab_size: int | None = None) -> None:
        self.path = Path(prefix)
        self.seq_length = seq_length
        self._limit = model_vocab_size
        index, tokens = (Path(f"{prefix}{suffix}") for suffix in (".idx", ".bin"))
        for file in (index, tokens):
            if not file.is_file():
                raise UserError(f"{file} is missing; a Megatron data set is a .bin and an .idx file")
        content = index.read_bytes()
        self._index_digest = hashlib.sha256(content).hexdigest()
        self._dtype, lengths, offsets = parse_index(content, index)
        if not np.array_equal(offsets, (np.cumsum(lengths) - lengths) * self._dtype.itemsize):
            raise UserError(f"{index}: the pieces do not follow one another in {tokens.name}; write the pair again")
        self.tokens = int(lengths.sum())
        self.bytes = self.tokens * self._dtype.itemsize
        if tokens.stat().st_size != self.bytes:
            raise UserError(
                f"{tokens} is damaged: {tokens.stat().st_size} bytes, {index.name} says {self.bytes}; copy it again"
            )
        self.num_sequences = max(0, self.tokens - 1) // seq_length
        if self.num_sequences == 0:
            raise UserError(f"{tokens} holds {self.tokens} tokens, fewer than one sequence of {seq_length} + 1")
        self._stream = mapped(tokens, self._dtype)
        self._sequences = np.lib.stride_tricks.sliding_window_view(self._stream, seq_length + 1)[::seq_length]
        self._sums = BlockSums.of(self.path, self._index_digest, self.bytes)
        self._found: UserError | None = None
        if self._limit is not None and self.bytes <= SCANNED_BYTES:
            self._scan(rest=0.0)
            if self._found is not None:
                raise self._found
        elif self._limit is not None:
            threading.Thread(target=self._scan, args=(1 / SCAN_SHARE - 1,), daemon=True).start()

    def read(self, sequences: np.ndarray) -> np.ndarray:
        """The sequences with these numbers (int64 [n]), [n, seq_length + 1], in the token type of the file.

        Raises:
            UserError: an id outside the vocabulary, in these sequences or in the part that was scanned so far; or a
                block that differs from the file of sums.
        """
        if self._found is not None:
            raise self._found
        if self._sums is not None:
            size = self._dtype.itemsize
            for number in sequences.tolist():
                start = number * self.seq_length * size
                self._sums.check(start, start + (self.seq_length + 1) * size)
        ids = self._sequences[sequences]
        if self._limit is not None and ids.size and (ids.max() >= self._limit or ids.min() < 0):
            row = int(np.argmax((ids >= self._limit).any(axis=1) | (ids < 0).any(axis=1)))
            at = int(np.argmax((ids[row] >= self._limit) | (ids[row] < 0)))
            raise self._no_such_id(int(sequences[row]) * self.seq_length + at)
        return ids

    def digest(self) -> str:
        """sha256 (hex) of the index, which has the lengths of all documents, and of samples of the tokens.

        The samples are ``SAMPLED_BLOCKS`` blocks at equal distances. Files with other tokens have another digest. A
        single changed token usually does not change the digest.
        """
        content = self._stream.view(np.uint8)
        starts = np.linspace(0, max(0, self.bytes - SAMPLE_BYTES), SAMPLED_BLOCKS).astype(np.int64)
        digest = hashlib.sha256(self._index_digest.encode())
        for start in np.unique(starts).tolist():
            digest.update(content[start : start + SAMPLE_BYTES].tobytes())
        return digest.hexdigest()

    def verify(self) -> None:
        """Scan the whole file for ids outside the vocabulary, and compare it with its sums. Raises UserError."""
        if self._limit is not None:
            self._scan(rest=0.0)
        if self._found is not None:
            raise self._found
        if self._sums is not None:
            self._sums.check(0, self.bytes)

    def _scan(self, rest: float) -> None:
        """Set ``_found`` at the first id outside the vocabulary. Sleep ``rest`` times as long as each scan takes."""
        assert self._limit is not None
        for start in range(0, self.tokens, SCAN_BLOCK_TOKENS):
            began = time.monotonic()
            block = self._stream[start : start + SCAN_BLOCK_TOKENS]
            if block.max() >= self._limit or block.min() < 0:
                self._found = self._no_such_id(start + int(np.argmax((block >= self._limit) | (block < 0))))
                return
            time.sleep(rest * (time.monotonic() - began))

    def _no_such_id(self, place: int) -> UserError:
        return UserError(
            f"{self.path}.bin holds token {self._stream[place]} (at {place:,} of {self.tokens:,}), model.vocab_size "
            f"is {self._limit}; set it to the vocabulary size of the tokenizer that made the file"
        )


def parse_index(content: bytes, path: Path) -> tuple[np.dtype, np.ndarray, np.ndarray]:
    """Token type, lengths (int64 [n]) and byte offsets (int64 [n]) of the pieces. Raises UserError when damaged."""
    if len(content) < HEADER.size or not content.startswith(MAGIC):
        raise UserError(f"{path} is not a Megatron index")
    _, version, code, pieces, bounds = HEADER.unpack_from(content)
    if version != 1 or code not in TOKEN_TYPES:
        raise UserError(f"{path}: version {version} with token type {code} is not supported (version 1, whole numbers)")
    if len(content) != HEADER.size + 12 * pieces + 8 * bounds:
        raise UserError(f"{path} is damaged: {len(content)} bytes, its header asks for another size; copy it again")
    lengths = np.frombuffer(content, "<i4", pieces, HEADER.size).astype(np.int64)
    if pieces and lengths.min() < 0:
        raise UserError(f"{path} is damaged: a piece of {lengths.min()} tokens; copy it again")
    offsets = np.frombuffer(content, "<i8", pieces, HEADER.size + 4 * pieces)
    return np.dtype(TOKEN_TYPES[code]), lengths, offsets
