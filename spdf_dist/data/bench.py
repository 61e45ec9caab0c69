"""Measures the loader and the tokenizers, for ``spdf bench data``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from spdf_dist.data.loader import Mixture, open_dataset, read_index
from spdf_dist.data.readers import check_inputs, documents
from spdf_dist.data.tokenizer import load_tokenizer

WARM_UP_BATCHES = 2


def bench(
    path: str | Path, seq_length: int | None = None, batch_size: int = 64, seconds: float = 3.0
) -> dict[str, Any]:
    """Read batches of a data set in training order, in this process, for ``seconds``.

    A first pass over the files fills the page cache.

    Args:
        path: a packed folder, or the prefix of Megatron files, which need ``seq_length``.

    Returns:
        ``tokens_per_s`` (target tokens), ``sequences_per_s``, ``batches``, ``seconds``, ``seq_length``, ``batch_size``.
    """
    dataset = open_dataset(path, seq_length or int(read_index(Path(path))["seq_len"]))
    dataset.verify()
    mixture = Mixture([dataset], [1.0], seed=0)
    for number in range(WARM_UP_BATCHES):
        mixture.batch(number * batch_size, batch_size)
    start = time.perf_counter()
    batches = 0
    while (elapsed := time.perf_counter() - start) < seconds:
        mixture.batch(batches * batch_size, batch_size)
        batches += 1
    rate = batches * batch_size / elapsed
    return {
        "path": str(path),
        "seq_length": dataset.seq_length,
        "batch_size": batch_size,
        "batches": batches,
        "seconds": elapsed,
        "sequences_per_s": rate,
        "tokens_per_s": rate * dataset.seq_length,
    }


def bench_tokenizer(tokenizer: str, inputs: list[str], max_mb: float = 16.0) -> dict[str, Any]:
    """Encode up to ``max_mb`` MB of text from ``inputs`` on one core.

    Returns:
        ``mb_per_s`` (10^6 bytes of UTF-8), ``tokens_per_s``, ``bytes_per_token``.
    """
    loaded = load_tokenizer(tokenizer)
    texts: list[str] = []
    size = 0
    for document in documents(check_inputs(inputs), lambda problem: None):
        texts.append(document.text)
        size += len(document.text.encode())
        if size >= max_mb * 1e6:
            break
    start = time.perf_counter()
    tokens = sum(len(loaded.encode(text)) for text in texts)
    elapsed = time.perf_counter() - start
    return {
        "tokenizer": str(tokenizer),
        "text_bytes": size,
        "seconds": elapsed,
        "mb_per_s": size / elapsed / 1e6,
        "tokens_per_s": tokens / elapsed,
        "bytes_per_token": size / max(1, tokens),
    }
