"""Packed data for training: random access to sequences, and mixtures of data sets in a reproducible order.

:func:`open_mixture` is the entry point. Samples are numbered from 0 over the whole run. The sequence of a sample
depends only on the seed, the sample's number and the data sets (:mod:`spdf_dist.data.order`). Therefore a data-parallel
rank reads only its own samples, and a resumed run continues with the next number.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from spdf_dist.base.digests import check_seal, file_digest
from spdf_dist.base.rank_variables import is_rank_zero
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import DatasetEntry
from spdf_dist.data.mapping import mapped
from spdf_dist.data.megatron import MegatronDataset, megatron_prefix
from spdf_dist.data.order import sequence_at, share_samples, whole_weights
from spdf_dist.data.shards import (
    DIGEST_BYTES,
    DIGEST_OFFSET,
    DIGEST_RULE,
    INDEX_FILE,
    SCHEMA_VERSION,
    TAR_BLOCK,
    MemberLayout,
    content_digest,
)

VERIFIED_BYTES = 1 << 30
"""The shards of data sets up to this size are compared with their sha256 when opened. In larger data sets, each
sequence is compared with its digest when it is read."""


class Dataset(Protocol):
    """Sequences of ``seq_length + 1`` token ids by number."""

    path: Path
    seq_length: int
    num_sequences: int
    tokenizer_digest: str | None
    vocab_size: int | None

    def read(self, sequences: np.ndarray) -> np.ndarray:
        """The sequences with these numbers (int64 [n]), [n, seq_length + 1]."""

    def digest(self) -> str:
        """A digest (hex) that identifies the data in a run's identity."""

    def verify(self) -> None:
        """Compare the content with its checksums. Raises UserError with the file that differs."""


class PackedDataset:
    """A folder written by ``spdf data pack``.

    Raises:
        UserError: the folder is not packed data, or a shard is missing or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.index = read_index(self.path)
        try:
            self._use_index()
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
            raise UserError(f"{self.path / INDEX_FILE} is damaged ({error!r:.200}); pack the data again") from error
        for file, size in zip(self._files, self._sizes, strict=True):
            if not file.is_file():
                raise UserError(f"the shard {file} is missing; copy it back or pack the data again")
            if file.stat().st_size != size:
                raise UserError(
                    f"the shard {file} is damaged: {file.stat().st_size} bytes, its index says {size}; "
                    "copy it again or pack the data again"
                )
        if sum(self._sizes) <= VERIFIED_BYTES:
            self.verify()
        elif not self._has_digests and is_rank_zero():
            print(
                f"WARNING: {self.path} was packed before sequences had digests, and is too large to be checked at the "
                f"start: `spdf data verify {self.path}` checks it; pack it again to have each sequence checked",
                file=sys.stderr,
            )
        self._shards: list[np.ndarray | None] = [None] * len(self._files)

    def _use_index(self) -> None:
        index = self.index
        self.seq_length = int(index["seq_len"])
        self.num_sequences = int(index["sequences"])
        self.tokens = int(index["tokens"])
        self.vocab_size: int | None = int(index["tokenizer"]["vocab_size"])
        self.eod_id = int(index["tokenizer"]["eod_id"])
        self.tokenizer_digest: str | None = str(index["tokenizer"]["digest"])
        if index["dtype"] not in ("uint16", "uint32"):
            raise ValueError(f"dtype {index['dtype']!r:.40}")
        if not 0 <= self.eod_id < self.vocab_size <= np.iinfo(index["dtype"]).max + 1:
            raise ValueError(f"end of document {self.eod_id} of {self.vocab_size} ids as {index['dtype']}")
        self._has_digests = index["members"].get("digest") == DIGEST_RULE
        self._dtype = np.dtype(index["dtype"]).newbyteorder("<")
        self._layout = MemberLayout.of(self.seq_length, index["dtype"])
        stored = MemberLayout(**{name: index["members"][name] for name in ("data_offset", "data_bytes", "stride")})
        if stored != self._layout:
            raise ValueError("its members do not lie as this version writes them")
        counts = [int(shard["sequences"]) for shard in index["shards"]]
        self._starts = np.cumsum([0, *counts])
        if self._starts[-1] != self.num_sequences:
            raise ValueError("the sizes of its shards do not add up to its sequences")
        self._sizes = [int(shard["bytes"]) for shard in index["shards"]]
        if self._sizes != [self._layout.shard_bytes(count) for count in counts]:
            raise ValueError("its shards' sizes do not follow from their sequences")
        self._files = [self.path / Path(shard["file"]).name for shard in index["shards"]]
        self._sha256 = [str(shard["sha256"]) for shard in index["shards"]]

    def verify(self) -> None:
        """Compare every shard with its sha256.

        Raises:
            UserError: a shard differs; the message names the first one.
        """
        for file, expected in zip(self._files, self._sha256, strict=True):
            if file_digest(file) != expected:
                raise UserError(
                    f"the shard {file} is damaged: its sha256 is not the index's; copy it again or pack the data again"
                )

    def read(self, sequences: np.ndarray) -> np.ndarray:
        """The sequences with these numbers (int64 [n]), uint16 or uint32 [n, seq_length + 1].

        Each read compares a sequence with the digest in its tar header, where the data set has digests.

        Raises:
            UserError: a sequence differs from its digest, or has an id outside the vocabulary.
        """
        result = np.empty((len(sequences), self.seq_length + 1), self._dtype)
        shards = np.searchsorted(self._starts, sequences, side="right") - 1
        for shard in np.unique(shards):
            chosen = shards == shard
            content, inside = self._shard(int(shard)), sequences[chosen] - self._starts[shard]
            if self._has_digests:
                self._check(content, inside, int(shard))
            result[chosen] = self._ids(content)[inside]
        if result.size and result.max() >= self.vocab_size:
            row = int(np.argmax(result.max(axis=1)))
            raise UserError(
                f"{self.path} is damaged: sequence {int(sequences[row])} holds token {result.max()}, and its tokenizer "
                f"has {self.vocab_size} ids; pack the data again"
            )
        return result

    def _shard(self, number: int) -> np.ndarray:
        """The bytes of a shard (uint8), memory-mapped."""
        shard = self._shards[number]
        if shard is None:
            shard = self._shards[number] = mapped(self._files[number], np.uint8)
        return shard

    def _ids(self, content: np.ndarray) -> np.ndarray:
        """The sequences of a shard as a view of its bytes, [sequences, seq_length + 1]."""
        return np.ndarray(
            shape=(len(content) // self._layout.stride, self.seq_length + 1),
            dtype=self._dtype,
            buffer=content,
            offset=self._layout.data_offset,
            strides=(self._layout.stride, self._dtype.itemsize),
        )

    def _check(self, content: np.ndarray, members: np.ndarray, shard: int) -> None:
        """Raise UserError unless these members of a shard match the digests in their headers."""
        size = self._layout.data_offset - TAR_BLOCK + self._layout.data_bytes
        for member in members.tolist():
            at = member * self._layout.stride
            stored = content[at + DIGEST_OFFSET : at + DIGEST_OFFSET + 2 * DIGEST_BYTES]
            if content_digest(content[at + TAR_BLOCK : at + TAR_BLOCK + size].data).encode() != stored.tobytes():
                raise UserError(
                    f"the shard {self._files[shard]} is damaged: sequence {member + int(self._starts[shard])} does not "
                    "have its digest; copy it again or pack the data again"
                )

    def digest(self) -> str:
        """sha256 (hex) of the shards' checksums, the lengths and the tokenizer's digest."""
        return digest_of_index(self.index)


class Mixture:
    """Several data sets as one endless sequence of samples, in the order of ``seed``.

    Data set ``d`` contributes the share ``weights[d] / sum(weights)`` of the first n samples, up to a few samples. Each
    data set is repeated endlessly, with a new order in each epoch.
    """

    def __init__(self, datasets: Sequence[Dataset], weights: Sequence[float], seed: int) -> None:
        if not datasets or len(weights) != len(datasets):
            raise ValueError(f"{len(datasets)} data sets with {len(weights)} weights")
        if len({dataset.seq_length for dataset in datasets}) > 1:
            raise ValueError("data sets of different sequence lengths")
        self.datasets = list(datasets)
        self.seed = seed
        self._weights = whole_weights(weights)
        self.seq_length = datasets[0].seq_length

    @property
    def num_sequences(self) -> int:
        """Number of sequences of all data sets together."""
        return sum(dataset.num_sequences for dataset in self.datasets)

    @property
    def tokenizer_digest(self) -> str | None:
        """The digest of the tokenizer that made the data; None when no data set records it (Megatron files)."""
        return next((d.tokenizer_digest for d in self.datasets if d.tokenizer_digest is not None), None)

    @property
    def vocab_size(self) -> int | None:
        """The vocabulary size of that tokenizer; None when no data set records it."""
        return next((d.vocab_size for d in self.datasets if d.vocab_size is not None), None)

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The data set (int64 [n]) and the sequence in it (int64 [n]) of each global sample (int64 [n])."""
        datasets, draws = share_samples(samples, self._weights)
        sequences = np.empty_like(draws)
        for number in np.unique(datasets):
            chosen = datasets == number
            size = self.datasets[number].num_sequences
            sequences[chosen] = sequence_at(draws[chosen], size, self.seed, int(number))
        return datasets, sequences

    def read(self, samples: Sequence[int] | np.ndarray) -> np.ndarray:
        """The token ids of these global samples (int64 [n]), int64 [n, seq_length + 1]."""
        wanted = np.asarray(samples, np.int64)
        datasets, sequences = self.locate(wanted)
        result = np.empty((len(wanted), self.seq_length + 1), np.int64)
        for number in np.unique(datasets):
            chosen = datasets == number
            result[chosen] = self.datasets[number].read(sequences[chosen])
        return result

    def batch(self, start: int, count: int) -> np.ndarray:
        """The token ids of the global samples ``start ... start + count - 1``, int64 [count, seq_length + 1]."""
        return self.read(np.arange(start, start + count))

    def verify(self) -> None:
        """Compare all data sets with their checksums. Raises UserError with the file that differs."""
        for dataset in self.datasets:
            dataset.verify()

    def digest(self) -> str:
        """sha256 (hex) of everything that determines the samples: data, sequence length, weights and seed."""
        parts: list[Any] = [self.seed, self.seq_length, self._weights, [dataset.digest() for dataset in self.datasets]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def open_mixture(entries: Sequence[DatasetEntry], seq_length: int, seed: int, vocab_size: int | None = None) -> Mixture:
    """Open the data sets of a config as one mixture.

    Args:
        entries: path and weight of each data set. A path is a packed folder, or the prefix of Megatron files.
        seq_length: T of the model. Sequences have T + 1 tokens.
        vocab_size: size of the model's vocabulary. Data with a larger vocabulary raise UserError.

    Raises:
        UserError: there are no data sets, a shard is missing or damaged, the sequence length or the tokenizers differ,
            the vocabulary is too large, or a weight is not positive.
    """
    if not entries:
        raise UserError("data.train is empty: name a folder written by `spdf data pack`")
    datasets = [open_dataset(entry.path, seq_length, vocab_size) for entry in entries]
    for dataset in datasets:
        if vocab_size is not None and dataset.vocab_size is not None and dataset.vocab_size > vocab_size:
            raise UserError(
                f"{dataset.path} was packed with a tokenizer of {dataset.vocab_size} ids, model.vocab_size is "
                f"{vocab_size}; set it to {dataset.vocab_size} or pack the data with the other tokenizer"
            )
    known = [dataset for dataset in datasets if dataset.tokenizer_digest is not None]
    for dataset in known[1:]:
        if dataset.tokenizer_digest != known[0].tokenizer_digest:
            raise UserError(
                f"{known[0].path} and {dataset.path} were packed with different tokenizers; pack both with one"
            )
    try:
        return Mixture(datasets, [entry.weight for entry in entries], seed)
    except ValueError as error:
        raise UserError(
            f"the weights of the data sets ({', '.join(str(e.weight) for e in entries)}): {error}"
        ) from error


def open_dataset(path: str | Path, seq_length: int, vocab_size: int | None = None) -> Dataset:
    """Open one data set with sequences of ``seq_length + 1`` tokens. Raises UserError as :func:`open_mixture`."""
    prefix = megatron_prefix(path)
    if prefix is not None:
        return MegatronDataset(prefix, seq_length, vocab_size)
    dataset = PackedDataset(path)
    if dataset.seq_length != seq_length:
        raise UserError(
            f"{dataset.path} holds sequences of {dataset.seq_length} tokens, model.seq_length is {seq_length}; "
            f"pack it again with `spdf data pack ... --seq-len {seq_length}`"
        )
    return dataset


def content_identity(path: str | Path, seq_length: int) -> str:
    """``Dataset.digest`` of a data set, from its index and samples: no shard is read. Raises UserError."""
    prefix = megatron_prefix(path)
    if prefix is not None:
        return MegatronDataset(prefix, seq_length).digest()
    index = read_index(Path(path))
    try:
        return digest_of_index(index)
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(f"{Path(path) / INDEX_FILE} is damaged ({error!r:.200}); pack the data again") from error


def digest_of_index(index: dict[str, Any]) -> str:
    """sha256 (hex) of the parts of an index that identify the sequences and their tokenizer."""
    parts = [str(int(index["seq_len"])), str(int(index["sequences"])), str(index["tokenizer"]["digest"])]
    parts += [str(shard["sha256"]) for shard in index["shards"]]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a packed folder. Raises UserError when it is missing, damaged or of another version."""
    path = folder / INDEX_FILE
    if not folder.exists():
        raise UserError(f"the data set {folder} does not exist; make it with `spdf data pack`")
    if not path.is_file():
        raise UserError(f"{folder} holds no packed data ({INDEX_FILE} is missing); make it with `spdf data pack`")
    try:
        content = path.read_bytes()
        index = json.loads(content)
        check_seal(content, index, "schema_version")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!s:.200}); pack the data again") from error
    if not isinstance(index, dict) or index.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{path} is not of schema version {SCHEMA_VERSION}; pack the data again")
    return index
