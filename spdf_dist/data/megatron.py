"""Reads Megatron-LM's token files (``PREFIX.bin`` and ``PREFIX.idx``) as they are.

``.idx``: the magic ``MMIDIDX\\0\\0``, version (uint64, 1), token type (uint8), number of pieces and of document bounds
(uint64 each), the pieces' lengths in tokens (int32), their byte offsets in ``.bin`` (int64), the document bounds
(int64). ``.bin``: the tokens, nothing else.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np

from spdf_dist.config.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
TOKEN_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


def megatron_prefix(path: str | Path) -> Path | None:
    """The prefix when ``path`` names Megatron files (by prefix, ``.bin`` or ``.idx``), else None."""
    path = Path(path)
    prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    if prefix.is_dir() and path.suffix not in (".bin", ".idx"):
        return None
    return prefix if any(Path(f"{prefix}{suffix}").is_file() for suffix in (".bin", ".idx")) else None


class MegatronDataset:
    """The documents of one ``.bin``/``.idx`` pair, joined and cut into sequences of ``seq_length + 1`` tokens.

    The first token of a sequence is the last of the one before; the final rest is dropped. The files do not tell
    their tokenizer: with ``model_vocab_size``, ids that the model does not have are an error when they are read.
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
                raise UserError(f"{file} is missing beside its other half")
        content = index.read_bytes()
        self._index_digest = hashlib.sha256(content).hexdigest()
        self._dtype, lengths, offsets = parse_index(content, index)
        if not np.array_equal(offsets, (np.cumsum(lengths) - lengths) * self._dtype.itemsize):
            raise UserError(
                f"{index}: the pieces do not lie one behind the other in {tokens.name}; write the pair again"
            )
        self.tokens = int(lengths.sum())
        self.bytes = self.tokens * self._dtype.itemsize
        if tokens.stat().st_size != self.bytes:
            raise UserError(
                f"{tokens} is damaged: {tokens.stat().st_size} bytes, {index.name} says {self.bytes}; copy it again"
            )
        self.num_sequences = max(0, self.tokens - 1) // seq_length
        if self.num_sequences == 0:
            raise UserError(f"{tokens} holds {self.tokens} tokens, fewer than one sequence of {seq_length} + 1")
        stream = np.memmap(tokens, self._dtype, "r")
        self._sequences = np.lib.stride_tricks.sliding_window_view(stream, seq_length + 1)[::seq_length]

    def read(self, sequences: np.ndarray) -> np.ndarray:
        """The sequences of these numbers (int64 [n]) -> [n, seq_length + 1], in the file's token type.

        Raises:
            UserError: an id that the model does not have.
        """
        ids = self._sequences[sequences]
        if self._limit is not None and ids.size and (ids.max() >= self._limit or ids.min() < 0):
            raise UserError(
                f"{self.path}.bin holds token {ids.max()}, model.vocab_size is {self._limit}; "
                "set it to the vocabulary size of the tokenizer that made the file"
            )
        return ids

    def digest(self) -> str:
        """sha256 (hex) of the index, which gives the lengths of all documents."""
        return self._index_digest

    def verify(self) -> None:
        """Nothing to compare with: the format holds no checksums."""


def parse_index(content: bytes, path: Path) -> tuple[np.dtype, np.ndarray, np.ndarray]:
    """Token type, lengths (int64 [n]) and byte offsets (int64 [n]) of the pieces."""
    if len(content) < HEADER.size or not content.startswith(MAGIC):
        raise UserError(f"{path} is not a Megatron index")
    _, version, code, pieces, bounds = HEADER.unpack_from(content)
    if version != 1 or code not in TOKEN_TYPES:
        raise UserError(f"{path}: version {version} with token type {code} is not supported (version 1, whole numbers)")
    if len(content) < HEADER.size + 12 * pieces + 8 * bounds:
        raise UserError(f"{path} is damaged: it ends too early; copy it again")
    lengths = np.frombuffer(content, "<i4", pieces, HEADER.size).astype(np.int64)
    offsets = np.frombuffer(content, "<i8", pieces, HEADER.size + 4 * pieces)
    return np.dtype(TOKEN_TYPES[code]), lengths, offsets
