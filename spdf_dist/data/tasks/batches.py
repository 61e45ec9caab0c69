"""The order of fine-tuning examples, from the seed and the epoch, with examples of similar length per batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spdf_dist.base.random_streams import philox

BATCHES_PER_BUCKET = 50
"""Number of batches per bucket, inside which examples are sorted by length.

More batches reduce padding. Fewer batches shuffle better."""


class FinetuneBatches:
    """Global batches over a task's examples.

    Every epoch has each example once. The examples are shuffled and cut into buckets. Each bucket is sorted by length
    and cut into batches. Then the batches are shuffled. One batch may be smaller than the others.
    """

    def __init__(self, lengths: Sequence[int], global_batch_size: int, seed: int) -> None:
        """Args:
        lengths: tokens of each example.
        global_batch_size: examples per batch, over all ranks.
        seed: seed of the order.
        """
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.global_batch_size = global_batch_size
        self.seed = seed

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return -(-len(self.lengths) // self.global_batch_size)

    def epoch(self, epoch: int) -> list[list[int]]:
        """The example indices of each global batch of ``epoch`` (from 0)."""
        size = self.global_batch_size
        order = self._shuffled(len(self.lengths), "examples", epoch)
        batches = []
        for start in range(0, len(order), size * BATCHES_PER_BUCKET):
            bucket = order[start : start + size * BATCHES_PER_BUCKET]
            # Longest first, so that a batch that is not full has the shortest examples.
            bucket = bucket[np.argsort(-self.lengths[bucket], kind="stable")]
            batches += [bucket[at : at + size].tolist() for at in range(0, len(bucket), size)]
        return [batches[at] for at in self._shuffled(len(batches), "batches", epoch)]

    def _shuffled(self, count: int, what: str, epoch: int) -> np.ndarray:
        """A permutation of ``range(count)``, int64 [count]."""
        return np.argsort(philox(f"fine-tuning order/{what}/{self.seed}/{epoch}", count), kind="stable")


def micro_batches(batch: Sequence[int], rank: int, ranks: int, size: int) -> list[tuple[int, list[int]]]:
    """The micro-batches of a global batch for data-parallel rank ``rank`` of ``ranks``, with their numbers in it.

    The batch is cut in order into micro-batches of ``size``, independent of the ranks. They are assigned to the ranks
    in turn. Every rank has the same number of micro-batches. In an incomplete batch, the last non-empty micro-batch may
    be smaller, and the ones after it are empty.
    """
    rounds = -(-len(batch) // (size * ranks))
    return [(number, list(batch[number * size :][:size])) for number in range(rank, rounds * ranks, ranks)]
