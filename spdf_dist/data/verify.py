"""Compares a whole data set with its checksums (``spdf data verify``)."""

from __future__ import annotations

from pathlib import Path

from spdf_dist.config.errors import UserError
from spdf_dist.data.block_sums import write_sums
from spdf_dist.data.loader import PackedDataset
from spdf_dist.data.megatron import MegatronDataset, megatron_prefix
from spdf_dist.data.shards import TOKENIZER_FOLDER
from spdf_dist.data.tokenizer import load_tokenizer


def verify_dataset(path: str) -> str:
    """Compare a packed folder or Megatron files with their checksums, and return a message with the result.

    For Megatron files without a file of sums, it is written from their present content.

    Raises:
        UserError: a file is damaged; the message names the first one.
    """
    prefix = megatron_prefix(path)
    if prefix is not None:
        tokens = MegatronDataset(prefix, 1)
        if not Path(f"{prefix}.sums").is_file():
            return f"{write_sums(prefix)} written for the {tokens.bytes:,} bytes that are there now"
        tokens.verify()
        return f"{tokens.bytes:,} bytes are those of {prefix}.sums"
    packed = PackedDataset(path)
    packed.verify()
    folder = packed.path / TOKENIZER_FOLDER
    if folder.is_dir() and load_tokenizer(folder).digest != packed.tokenizer_digest:
        raise UserError(f"{folder} is damaged: it is not the tokenizer that made the data; pack the data again")
    return f"{packed.num_sequences:,} sequences are those of the index"
