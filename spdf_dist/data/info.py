"""What a packed data set holds, and how well the best model without context predicts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from spdf_dist.data.loader import PackedDataset

CHUNK = 4096
"""Sequences read at a time."""


def describe(path: str | Path) -> dict[str, Any]:
    """Facts of the packed folder ``path``, read whole once.

    ``unigram_entropy`` is that of the data's own predicted tokens, in nats a token: no model that ignores context has a
    lower loss on them, so a loss has to lie well below it before anything was learned but how often each token comes.
    Raises UserError for no packed folder, or one that is damaged.
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
