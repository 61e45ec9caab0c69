"""The interface of a sparsity pattern, and the scores by which a pattern selects entries."""

from __future__ import annotations

from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spdf_dist.base.random_streams import derive_seed, splitmix64
from spdf_dist.config.errors import UserError

BoolArray = NDArray[np.bool_]
Scores64 = NDArray[np.uint64]
U64 = np.uint64

Shape = tuple[int, int]
"""Shape [out, in] of a weight."""


class Scores(Protocol):
    """Scores that select a mask. The entries or blocks of the lowest scores are kept."""

    def __call__(self, size: int) -> Scores64:
        """Scores of the size x size blocks of the weight (with 1: of its entries), uint64, flat, in row-major order."""

    def stream(self, label: str, count: int) -> Scores64:
        """``count`` additional random integers, uint64. Raises UserError where the scores are not random."""


class Pattern(Protocol):
    """The entries of a weight that are kept together, and their number. Counting does not need torch or a mask."""

    block: int
    """Edge of the square blocks in which entries are kept; 1: single entries. Only blocks can be permuted."""

    def check(self, name: str, shape: Shape, level: Fraction) -> None:
        """Raise UserError unless the pattern supports this shape and this level (0 < level < 1)."""

    def kept_count(self, name: str, shape: Shape, level: Fraction) -> int:
        """Number of entries that the mask keeps."""

    def make_mask(self, name: str, shape: Shape, level: Fraction, scores: Scores) -> BoolArray:
        """The mask, bool [out, in]; True is kept."""


def exact(level: float | Fraction) -> Fraction:
    """The exact decimal that the user wrote. Floats would round wrongly: int((1 - 0.9) * 1000) is 99."""
    return level if isinstance(level, Fraction) else Fraction(str(level))


def pruned_count(numel: int, level: float | Fraction) -> int:
    """floor(level * numel), computed exactly from the decimal."""
    return int(exact(level) * numel)


def random_scores(seed: int, name: str, count: int) -> Scores64:
    """Pseudo-random integers (uint64 [count]) for the flat indices of a weight: SplitMix64 at counters from a key.

    For one key the map from index to score is a bijection. Therefore the scores of one weight never tie.
    """
    return splitmix64(derive_seed("mask", seed, name), count)


def keep_lowest(score: Scores64, kept: int) -> BoolArray:
    """True at the ``kept`` lowest scores of a flat array. The lower index wins ties."""
    if kept == 0:
        return np.zeros(score.size, dtype=bool)
    if kept == score.size:
        return np.ones(score.size, dtype=bool)
    threshold = np.partition(score, kept - 1)[kept - 1]
    mask = score <= threshold
    mask[np.flatnonzero(score == threshold)[::-1][: int(mask.sum()) - kept]] = False
    return np.asarray(mask, dtype=bool)


def magnitude_bits(values: NDArray[np.float32]) -> Scores64:
    """Integers in the order of the magnitudes, uint64. A value that is not finite counts as 0."""
    finite = np.where(np.isfinite(values), values, np.float32(0))
    return np.abs(np.ascontiguousarray(finite, dtype=np.float32)).view(np.uint32).astype(np.uint64)


def by_magnitude(values: NDArray[np.float32]) -> Scores64:
    """Scores that prefer the largest magnitudes, uint64. A value that is not finite has the highest score."""
    return U64(0xFFFFFFFF) - magnitude_bits(values)


def in_blocks(values: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """Sums of the magnitudes of each block x block entries; ``values`` itself where ``block`` is 1."""
    if block == 1:
        return values
    rows, columns = values.shape
    parts = np.abs(values).reshape(rows // block, block, columns // block, block)
    return parts.sum((1, 3), dtype=np.float64).astype(np.float32)


class RandomScores:
    """Random scores that depend only on the seed, the weight's name and the flat index."""

    def __init__(self, seed: int, name: str, shape: Shape) -> None:
        self.seed, self.name, self.shape = seed, name, shape

    def __call__(self, size: int) -> Scores64:
        return random_scores(self.seed, self.name, (self.shape[0] // size) * (self.shape[1] // size))

    def stream(self, label: str, count: int) -> Scores64:
        return random_scores(self.seed, f"{self.name}/{label}", count)


class MagnitudeScores:
    """Scores that keep the entries of the largest magnitudes, or the blocks of the largest sums of magnitudes."""

    def __init__(self, weight: NDArray[np.float32]) -> None:
        self.weight = weight

    def __call__(self, size: int) -> Scores64:
        return by_magnitude(in_blocks(self.weight, size)).reshape(-1)

    def stream(self, label: str, count: int) -> Scores64:
        raise UserError("sparsity.pattern: a balanced mask is random; select by magnitude with block:B or unstructured")
