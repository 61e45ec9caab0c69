"""The order of fine-tuning examples: a function of (seed, epoch) alone, batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spdf_dist.base.random_streams import philox

BATCHES_PER_BUCKET = 50
"""Batches that are sorted by length together: more wastes less padding, fewer mixes better."""


class FinetuneBatches:
    """Global batches over a task's examples.

    Every epoch takes each example once: shuffled, cut into buckets, sorted by length inside a bucket, cut into
    batches, and the batches shuffled. The last batch of the file's rest is smaller.
    """

    def __init__(self, lengths: Sequence[int], global_batch_size: int, seed: int) -> None:
        """Args:
        lengths: tokens of each example.
        global_batch_size: examples a batch, over all ranks.
        seed: seeds the order; two seeds share nothing.
        """
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.global_batch_size = global_batch_size
        self.seed = seed

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-len(self.lengths) // self.global_batch_size)

    def epoch(self, epoch: int) -> list[list[int]]:
        """The example indices of each global batch of ``epoch`` (from 0)."""
        size = self.global_batch_size
        order = self._shuffled(len(self.lengths), "examples", epoch)
        batches = []
        for start in range(0, len(order), size * BATCHES_PER_BUCKET):
            bucket = order[start : start + size * BATCHES_PER_BUCKET]
            # Longest first, so that the batch that is not full holds the shortest.
            bucket = bucket[np.argsort(-self.lengths[bucket], kind="stable")]
            batches += [bucket[at : at + size].tolist() for at in range(0, len(bucket), size)]
        return [batches[at] for at in self._shuffled(len(batches), "batches", epoch)]

    def _shuffled(self, count: int, what: str, epoch: int) -> np.ndarray:
        """A permutation of ``range(count)``."""
        return np.argsort(philox(f"fine-tuning order/{what}/{self.seed}/{epoch}", count), kind="stable")


def micro_batches(batch: Sequence[int], rank: int, ranks: int, size: int) -> list[tuple[int, list[int]]]:
    """What data-parallel rank ``rank`` of ``ranks`` takes of a global batch: micro-batches with their numbers in it.

    The batch is cut into micro-batches of ``size`` in its order, whatever the ranks, and these are dealt in turn. Every
    rank gets the same number; the last one of a batch that is not full may be short, and those after it are empty.
    """
    rounds = -(-len(batch) // (size * ranks))
    return [(number, list(batch[number * size :][:size])) for number in range(rank, rounds * ranks, ranks)]
