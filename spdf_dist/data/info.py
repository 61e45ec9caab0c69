"""Describes a packed data set, and computes the entropy of its unigram distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from spdf_dist.data.loader import PackedDataset

CHUNK = 4096
"""Number of sequences per read."""


def describe(path: str | Path) -> dict[str, Any]:
    """Sizes and statistics of the packed folder ``path``. The whole folder is read once.

    ``unigram_entropy`` is the entropy of the predicted tokens, in nats per token. A model that ignores context cannot
    have a lower loss on this data. Only a loss below it shows that a model uses context.

    Raises UserError for a folder that is not packed data or is damaged.
    """
    data = PackedDataset(path)
    counts = np.zeros(data.vocab_size or 0, np.int64)
    for start in range(0, data.num_sequences, CHUNK):
        ids = data.read(np.arange(start, min(start + CHUNK, data.num_sequences)))
        counts += np.bincount(ids[:, 1:].ravel(), minlength=len(counts))
    shares = counts[counts > 0] / counts.sum()
    return {
        "schema_version": 1,
        "path": str(data.path),
        "seq_len": data.seq_length,
        "sequences": data.num_sequences,
        "tokens": data.tokens,
        "documents": data.index["documents"],
        "vocab_size": data.vocab_size,
        "tokenizer_digest": data.tokenizer_digest,
        "used_ids": int((counts > 0).sum()),
        "unigram_entropy": float(-(shares * np.log(shares)).sum()),
        "sets": data.index["sets"],
    }
