"""Which sequence is global sample ``i``: a function of (seed, i) and the data sets alone, at constant cost.

Nothing is stored and nothing is drawn in sequence, so any sample can be asked for at any time: a run that resumes, or
changes its batch size or its ranks, sees the samples that it would have seen.
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
"""With four, neighbours stay neighbours twice as often as chance has it; with six, as often."""
DOMAIN = "spdf/data-order"
"""Keeps the order's stream apart from those of masks, initialisation and dropout, which may share the seed."""

WEIGHT_DENOMINATOR = 10**6
MAX_SAMPLE = 1 << 40


@lru_cache(maxsize=1024)
def round_keys(seed: int, dataset: int, epoch: int) -> tuple[np.uint64, ...]:
    """The keys of one epoch's permutation."""
    stream = hashlib.shake_256(f"{DOMAIN}/{seed}/{dataset}/{epoch}".encode()).digest(8 * ROUNDS)
    return tuple(np.uint64(key) for key in np.frombuffer(stream, "<u8"))


def permute(positions: np.ndarray, size: int, keys: Sequence[np.uint64]) -> np.ndarray:
    """A keyed permutation of ``0 ... size - 1`` at ``positions`` (uint64 [n]) -> uint64 [n].

    A Feistel network over a grid of rows x columns just larger than ``size``, walked until the value falls below
    ``size`` (Black and Rogaway, 2002: "Ciphers with arbitrary finite domains", sections 4 and 5).
    """
    rows = np.uint64(math.isqrt(size - 1) + 1)
    columns = np.uint64(-(-size // int(rows)))
    limit = np.uint64(size)
    result = shuffle_grid(positions.astype(np.uint64), rows, columns, keys)
    while len(outside := np.flatnonzero(result >= limit)):
        result[outside] = shuffle_grid(result[outside], rows, columns, keys)
    return result


def shuffle_grid(values: np.ndarray, rows: np.uint64, columns: np.uint64, keys: Sequence[np.uint64]) -> np.ndarray:
    """One pass of the Feistel network over ``rows * columns`` values."""
    row: np.ndarray = values // columns
    column: np.ndarray = values % columns
    for number, key in enumerate(keys):
        if number % 2 == 0:
            row = (row + mix(column + key) % rows) % rows
        else:
            column = (column + mix(row + key) % columns) % columns
    return row * columns + column


def sequence_at(draws: np.ndarray, size: int, seed: int, dataset: int) -> np.ndarray:
    """The sequence that each draw (int64 [n], from 0) takes from a data set of ``size`` -> int64 [n].

    Draws ``e * size ... (e + 1) * size - 1`` are epoch ``e``: each sequence once, in an order of its own.
    """
    epochs, positions = draws // size, (draws % size).astype(np.uint64)
    result = np.empty(len(draws), np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        result[chosen] = permute(positions[chosen], size, round_keys(seed, dataset, int(epoch)))
    return result


def whole_weights(weights: Sequence[float]) -> list[int]:
    """Weights as whole numbers without a common factor, exact to six decimals of their share.

    Raises:
        ValueError: a weight is not positive and finite, or less than a millionth of the sum.
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
    """Which data set each global sample (int64 [n]) comes from, and its draw number there -> int64 [n], int64 [n].

    The list of data sets is halved again and again; at each split with weights a and b, the first i samples send
    floor(i * a / (a + b)) to the left. So draws of a data set are numbered without a gap, and after any number of
    samples each split is exact to one sample.
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
