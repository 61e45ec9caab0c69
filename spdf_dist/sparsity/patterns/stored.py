"""Masks read from a file, or from the checkpoint that training starts from."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from spdf_dist.config.errors import UserError
from spdf_dist.sparsity.patterns.base import BoolArray, Scores, Shape
from spdf_dist.sparsity.patterns.plain import Unstructured

LEVEL_TOLERANCE = 0.005
"""Largest difference between sparsity.level and the level of stored masks."""


@dataclass(frozen=True)
class MaskFile:
    """Masks from a safetensors file, by logical weight name.

    A mask is bool or uint8 [out, in], or uint8 [ceil(out * in / 8)] as in ``masks.safetensors`` of a checkpoint:
    row-major bits, high bit first.
    """

    path: str
    syntax: ClassVar[str] = "FILE.safetensors"
    block: ClassVar[int] = 1

    @classmethod
    def parse(cls, text: str) -> MaskFile | None:
        return cls(str(Path(text).expanduser())) if text.endswith(".safetensors") else None

    def check(self, name: str, shape: Shape, level: Fraction) -> None:
        own = 1 - self.kept_count(name, shape, level) / (shape[0] * shape[1])
        if abs(own - level) > LEVEL_TOLERANCE:
            raise UserError(
                f"sparsity.level: {self.path} prunes {own:.6g} of {name}, not {float(level):g}; set sparsity.level, or "
                f"sparsity.levels by weight, to what the file has"
            )

    def kept_count(self, name: str, shape: Shape, level: Fraction) -> int:
        return int(self.make_mask(name, shape, level, None).sum())

    def make_mask(self, name: str, shape: Shape, level: Fraction, scores: Scores | None) -> BoolArray:
        stored = read_masks(self.path).get(name)
        if stored is None:
            raise UserError(f"sparsity.pattern: {self.path} holds no mask of {name}")
        if stored.shape == shape:
            return stored.astype(bool)
        if stored.dtype == np.uint8 and stored.shape == (-(-shape[0] * shape[1] // 8),):
            return np.unpackbits(stored, count=shape[0] * shape[1], bitorder="big").view(np.bool_).reshape(shape)
        raise UserError(f"sparsity.pattern: {self.path}: the mask of {name} is {list(stored.shape)}, not {list(shape)}")


@lru_cache(maxsize=4)
def read_masks(path: str) -> dict[str, np.ndarray]:
    """All arrays of a mask file. Raises UserError for a file that cannot be read."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"sparsity.pattern: {path} cannot be read: {' '.join(str(error).split())}") from None


@dataclass(frozen=True)
class FromCheckpoint(Unstructured):
    """The masks of the checkpoint that ``training.init_from`` names. Counts follow from the level until it is read."""

    syntax: ClassVar[str] = "init_from"

    @classmethod
    def parse(cls, text: str) -> FromCheckpoint | None:
        return cls() if text == "init_from" else None

    def make_mask(self, name: str, shape: Shape, level: Fraction, scores: Scores) -> BoolArray:
        raise UserError("sparsity.pattern: init_from takes the masks of training.init_from, which is not set")
