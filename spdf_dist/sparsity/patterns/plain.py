"""Patterns that keep the lowest scores among all entries, among blocks, or in each group of M inputs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from spdf_dist.config.errors import UserError
from spdf_dist.sparsity.patterns.base import BoolArray, Scores, Shape, keep_lowest, pruned_count

LEVEL_TOLERANCE = 1e-5
"""Tolerance between the level of an N:M pattern and its decimal in the config: 1 - 1/3 has no exact decimal."""


@dataclass(frozen=True)
class Unstructured:
    """Any entries of the weight (SPDF, section 3 and appendix A.1)."""

    syntax: ClassVar[str] = "unstructured"
    block: ClassVar[int] = 1

    @classmethod
    def parse(cls, text: str) -> Unstructured | None:
        return cls() if text == "unstructured" else None

    def check(self, name: str, shape: Shape, level: Fraction) -> None:
        """Every shape and level is valid."""

    def kept_count(self, name: str, shape: Shape, level: Fraction) -> int:
        numel = shape[0] * shape[1]
        return numel - pruned_count(numel, level)

    def make_mask(self, name: str, shape: Shape, level: Fraction, scores: Scores) -> BoolArray:
        return keep_lowest(scores(1), self.kept_count(name, shape, level)).reshape(shape)


def block_size(pattern: str, text: str) -> int | None:
    """B of ``pattern:B``; None for another text."""
    match = re.fullmatch(rf"{pattern}:([1-9]\d*)", text)
    return int(match[1]) if match else None


def check_blocks(name: str, shape: Shape, size: int) -> None:
    """Raise UserError unless the shape divides into blocks."""
    rows, columns = shape
    if rows % size or columns % size:
        raise UserError(f"sparsity.pattern: {name} of shape {rows}x{columns} does not divide into blocks of {size}")


def spread(kept: BoolArray, size: int) -> BoolArray:
    """Expand each entry of a grid of blocks to size x size entries."""
    return np.repeat(np.repeat(kept, size, axis=0), size, axis=1)


@dataclass(frozen=True)
class Block:
    """Random B x B blocks."""

    block: int
    syntax: ClassVar[str] = "block:B"

    @classmethod
    def parse(cls, text: str) -> Block | None:
        size = block_size("block", text)
        return None if size is None else cls(size)

    def check(self, name: str, shape: Shape, level: Fraction) -> None:
        check_blocks(name, shape, self.block)

    def kept_count(self, name: str, shape: Shape, level: Fraction) -> int:
        blocks = (shape[0] // self.block) * (shape[1] // self.block)
        return (blocks - pruned_count(blocks, level)) * self.block**2

    def make_mask(self, name: str, shape: Shape, level: Fraction, scores: Scores) -> BoolArray:
        grid = (shape[0] // self.block, shape[1] // self.block)
        kept = keep_lowest(scores(self.block), self.kept_count(name, shape, level) // self.block**2)
        return spread(kept.reshape(grid), self.block)


@dataclass(frozen=True)
class NOfM:
    """N of every M consecutive inputs of an output."""

    kept: int
    group: int
    syntax: ClassVar[str] = "N:M"
    block: ClassVar[int] = 1

    @classmethod
    def parse(cls, text: str) -> NOfM | None:
        match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text)
        return cls(int(match[1]), int(match[2])) if match else None

    def check(self, name: str, shape: Shape, level: Fraction) -> None:
        own = 1 - Fraction(self.kept, self.group)
        if own <= 0:
            raise UserError(f"sparsity.pattern: {self.kept}:{self.group} keeps all or more")
        if abs(level - own) >= LEVEL_TOLERANCE:
            raise UserError(
                f"sparsity.level: pattern {self.kept}:{self.group} has level {float(own):.6g}, not {float(level):g}"
            )
        if shape[1] % self.group:
            raise UserError(f"sparsity.pattern: {name} has {shape[1]} inputs, not a multiple of {self.group}")

    def kept_count(self, name: str, shape: Shape, level: Fraction) -> int:
        return shape[0] * shape[1] * self.kept // self.group

    def make_mask(self, name: str, shape: Shape, level: Fraction, scores: Scores) -> BoolArray:
        score = scores(1).reshape(-1, self.group)
        order = np.argsort(score, axis=1, kind="stable")
        mask = np.zeros(score.shape, dtype=bool)
        np.put_along_axis(mask, order[:, : self.kept], True, axis=1)
        return mask.reshape(shape)
