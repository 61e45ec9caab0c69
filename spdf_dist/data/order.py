"""Maps a global sample number to a data set and a sequence, from the seed and the data sets, at constant cost.

The mapping has no state. Therefore any sample can be computed at any time. A run that resumes, or that changes its
batch size or its number of ranks, sees the same samples.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from spdf_dist.base.random_streams import mix

ROUNDS = 6
"""Rounds of the Feistel network. With six, neighbours stay neighbours as often as by chance; with four, more often."""
DOMAIN = "spdf/data-order"
"""Separates the random stream of the order from those of masks, initialisation and dropout with the same seed."""

WEIGHT_DENOMINATOR = 10**6


@lru_cache(maxsize=1024)
def round_keys(seed: int, dataset: int, epoch: int) -> tuple[np.uint64, ...]:
    """The keys of one epoch's permutation, one per round."""
    stream = hashlib.shake_256(f"{DOMAIN}/{seed}/{dataset}/{epoch}".encode()).digest(8 * ROUNDS)
    return tuple(np.uint64(key) for key in np.frombuffer(stream, "<u8"))


def permute(positions: np.ndarray, size: int, keys: Sequence[np.uint64]) -> np.ndarray:
    """The values (uint64 [n]) of a keyed permutation of ``0 ... size - 1`` at ``positions`` (uint64 [n]).

    A Feistel network permutes a grid of rows x columns that is just larger than ``size``. It is repeated until the
    value is below ``size`` (Black and Rogaway, 2002: "Ciphers with arbitrary finite domains", sections 4 and 5).
    """
    rows = np.uint64(math.isqrt(size - 1) + 1)
    columns = np.uint64(-(-size // int(rows)))
    limit = np.uint64(size)
    result = shuffle_grid(positions.astype(np.uint64), rows, columns, keys)
    while len(outside := np.flatnonzero(result >= limit)):
        result[outside] = shuffle_grid(result[outside], rows, columns, keys)
    return result


def shuffle_grid(values: np.ndarray, rows: np.uint64, columns: np.uint64, keys: Sequence[np.uint64]) -> np.ndarray:
    """Apply the Feistel network on ``rows * columns`` values once to ``values`` (uint64 [n])."""
    row: np.ndarray = values // columns
    column: np.ndarray = values % columns
    for number, key in enumerate(keys):
        if number % 2 == 0:
            row = (row + mix(column + key) % rows) % rows
        else:
            column = (column + mix(row + key) % columns) % columns
    return row * columns + column


def sequence_at(draws: np.ndarray, size: int, seed: int, dataset: int) -> np.ndarray:
    """The sequences (int64 [n]) of the draws (int64 [n], from 0) from a data set of ``size`` sequences.

    The draws ``e * size ... (e + 1) * size - 1`` are epoch ``e``. An epoch has each sequence once, in its own order.
    """
    epochs, positions = draws // size, (draws % size).astype(np.uint64)
    result = np.empty(len(draws), np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        result[chosen] = permute(positions[chosen], size, round_keys(seed, dataset, int(epoch)))
    return result


def whole_weights(weights: Sequence[float]) -> list[int]:
    """Weights as whole numbers without a common factor. Their shares are exact to six decimals.

    Raises:
        ValueError: a weight is not positive and finite, or rounds to zero millionths of the sum.
    """
    if any(not (math.isfinite(weight) and weight > 0) for weight in weights):
        raise ValueError("weights must be positive numbers")
    exact = [Fraction(repr(float(weight))) for weight in weights]
    if math.lcm(*(weight.denominator for weight in exact)) * sum(exact) > WEIGHT_DENOMINATOR:
        exact = [Fraction(round(weight / sum(exact) * WEIGHT_DENOMINATOR)) for weight in exact]
        if not all(exact):
            raise ValueError("a weight is less than a millionth of their sum")
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    divisor = math.gcd(*whole)
    return [weight // divisor for weight in whole]


def share_samples(samples: np.ndarray, weights: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The data set of each global sample (int64 [n]) and its draw number there, both int64 [n].

    The list of data sets is halved recursively. At a split with the weights a and b, floor(i * a / (a + b)) of the
    first i samples go left. Therefore the draws of a data set are numbered without gaps, and each split is exact to one
    sample after any number of samples.
    """
    datasets = np.zeros(len(samples), np.int64)
    draws = np.empty(len(samples), np.int64)

    def split(chosen: np.ndarray, local: np.ndarray, first: int, last: int) -> None:
        if last - first == 1:
            datasets[chosen] = first
            draws[chosen] = local
            return
        middle = (first + last) // 2
        left = sum(weights[first:middle])
        total = sum(weights[first:last])
        before = local * left // total
        goes_left = (local + 1) * left // total > before
        split(chosen[goes_left], before[goes_left], first, middle)
        split(chosen[~goes_left], (local - before)[~goes_left], middle, last)

    split(np.arange(len(samples)), samples.astype(np.int64), 0, len(weights))
    return datasets, draws
