"""Random blocks, with the same number of kept blocks in each block row and in each block column.

GPU kernels need this balance: all tiles have the same trip count, and the kept values of a weight are one dense matrix
[out, kept * B].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from spdf_dist.config.errors import UserError
from spdf_dist.sparsity.patterns.base import BoolArray, Scores, Shape, pruned_count
from spdf_dist.sparsity.patterns.plain import block_size, check_blocks, spread

ROUNDS = 32
"""Rounds of trades, plus two per doubling of the rows. With this many, two masks overlap as often as by chance."""


@dataclass(frozen=True)
class Balanced:
    """A circulant grid of blocks, mixed by trades between pairs of rows. A trade keeps all row and column sums."""

    block: int
    syntax: ClassVar[str] = "balanced:B"

    @classmethod
    def parse(cls, text: str) -> Balanced | None:
        size = block_size("balanced", text)
        return None if size is None else cls(size)

    def check(self, name: str, shape: Shape, level: Fraction) -> None:
        check_blocks(name, shape, self.block)
        rows, columns = self.grid(shape)
        blocks, step = rows * columns, math.lcm(rows, columns)
        kept = blocks - pruned_count(blocks, level)
        if kept % step or kept == blocks:
            below, above = kept // step * step, (kept // step + 1) * step
            possible = [f"{float(1 - Fraction(count, blocks)):.6g}" for count in (above, below) if 0 < count < blocks]
            nearest = f"the nearest levels are {' and '.join(possible)}" if possible else "no level can be balanced"
            raise UserError(
                f"sparsity.level: {name} has {rows}x{columns} blocks of {self.block}; its rows and columns cannot keep "
                f"equal numbers at {float(level):g}; {nearest}"
            )

    def grid(self, shape: Shape) -> Shape:
        """Numbers of block rows and of block columns."""
        return shape[0] // self.block, shape[1] // self.block

    def kept_count(self, name: str, shape: Shape, level: Fraction) -> int:
        rows, columns = self.grid(shape)
        return (rows * columns - pruned_count(rows * columns, level)) * self.block**2

    def make_mask(self, name: str, shape: Shape, level: Fraction, scores: Scores) -> BoolArray:
        rows, columns = self.grid(shape)
        per_row = self.kept_count(name, shape, level) // self.block**2 // rows
        kept = np.zeros((rows, columns), dtype=bool)
        places = np.arange(rows * per_row)
        kept[places // per_row, places % columns] = True
        for number in range(ROUNDS + 2 * rows.bit_length()):
            trade(kept, scores.stream(f"balanced/{number}", rows + rows * columns))
        return spread(kept, self.block)


def trade(kept: BoolArray, draws: np.ndarray) -> None:
    """Pair the rows of ``kept`` at random and do one curveball trade per pair, in place.

    A trade redistributes at random the columns that exactly one row of the pair keeps. Row and column sums do not
    change. ``draws`` are rows + rows x columns random integers.
    """
    rows, columns = kept.shape
    order = np.argsort(draws[:rows], kind="stable")
    first, second = order[: rows // 2], order[rows // 2 : rows // 2 * 2]
    a, b = kept[first], kept[second]
    differing = a != b
    # Columns that differ rank first, in random order. The first row takes as many of them as it had.
    score = np.where(differing, draws[rows:].reshape(rows, columns)[: len(first)] >> np.uint64(1), np.uint64(2**63))
    rank = np.argsort(np.argsort(score, axis=1, kind="stable"), axis=1, kind="stable")
    taken = differing & (rank < (a & ~b).sum(1, keepdims=True))
    both = a & b
    kept[first] = both | taken
    kept[second] = both | (differing & ~taken)
