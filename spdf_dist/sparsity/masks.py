"""Static random masks, each a function of (sparsity seed, logical weight name, shape, level, pattern) alone.

Scores are 64-bit integers from a counter-based generator, so that every rank, device and library version computes
the same mask, and any part of it without the rest. The k lowest scores are kept. Arrays are numpy bool, [out, in].

Source: SPDF, section 3 and appendix A.1 (random pruning, uniform over layers).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import ModelConfig, SparsityConfig
from spdf_dist.sparsity.seeds import derive_seed

BoolArray = NDArray[np.bool_]
U64 = np.uint64


def pruned_count(numel: int, level: float) -> int:
    """floor(level * numel), exact on the decimal that the user wrote: int((1 - 0.9) * 1000) is 99 in floats."""
    return int(Fraction(str(level)) * numel)


def scores(seed: int, name: str, count: int) -> NDArray[np.uint64]:
    """[count] pseudo-random 64-bit integers for the flat indices of a weight: SplitMix64 at counters from a key.

    For one key the map from index to score is a bijection, so scores of one weight never tie.
    """
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=U64)
        z *= U64(0x9E3779B97F4A7C15)
        z += U64(derive_seed("mask", seed, name))
        z ^= z >> U64(30)
        z *= U64(0xBF58476D1CE4E5B9)
        z ^= z >> U64(27)
        z *= U64(0x94D049BB133111EB)
        z ^= z >> U64(31)
    return z


def keep_lowest(score: NDArray[np.uint64], kept: int) -> BoolArray:
    """True at the ``kept`` lowest scores of a flat array; ties go to the lower index."""
    if kept == 0:
        return np.zeros(score.size, dtype=bool)
    if kept == score.size:
        return np.ones(score.size, dtype=bool)
    threshold = np.partition(score, kept - 1)[kept - 1]
    mask = score <= threshold
    for index in np.flatnonzero(score == threshold)[::-1][: int(mask.sum()) - kept]:
        mask[index] = False
    return np.asarray(mask, dtype=bool)


def make_mask(name: str, shape: tuple[int, int], sparsity: SparsityConfig) -> BoolArray:
    """The mask [out, in] of one logical weight; True is kept.

    Raises UserError when the shape does not fit the pattern.
    """
    rows, columns = shape
    block = re.fullmatch(r"block:(\d+)", sparsity.pattern)
    n_of_m = re.fullmatch(r"(\d+):(\d+)", sparsity.pattern)
    if sparsity.pattern == "unstructured":
        numel = rows * columns
        return keep_lowest(scores(sparsity.seed, name, numel), numel - pruned_count(numel, sparsity.level)).reshape(
            shape
        )
    if block:
        size = int(block[1])
        if rows % size or columns % size:
            raise UserError(f"sparsity.pattern: {name} of shape {rows}x{columns} does not divide into blocks of {size}")
        grid = (rows // size, columns // size)
        numel = grid[0] * grid[1]
        kept = keep_lowest(scores(sparsity.seed, name, numel), numel - pruned_count(numel, sparsity.level))
        return np.repeat(np.repeat(kept.reshape(grid), size, axis=0), size, axis=1)
    if n_of_m:
        kept_of, group = int(n_of_m[1]), int(n_of_m[2])
        if columns % group:
            raise UserError(f"sparsity.pattern: {name} has {columns} inputs, no multiple of {group}")
        score = scores(sparsity.seed, name, rows * columns).reshape(-1, group)
        order = np.argsort(score, axis=1, kind="stable")
        mask = np.zeros(score.shape, dtype=bool)
        np.put_along_axis(mask, order[:, :kept_of], True, axis=1)
        return mask.reshape(shape)
    raise UserError(f"sparsity.pattern: '{sparsity.pattern}' is not known")


def mask_digest(mask: BoolArray) -> str:
    """SHA-256, in hex, over the shape (two big-endian 64-bit integers) and the row-major bits, high bit first."""
    digest = hashlib.sha256(np.array(mask.shape, dtype=">u8").tobytes())
    digest.update(np.packbits(np.ascontiguousarray(mask), bitorder="big").tobytes())
    return digest.hexdigest()


def logical_weights(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Names and [out, in] shapes of the matrices that may be sparse, in the order of the layers."""
    d, f = model.hidden_size, model.ffn
    shapes = {"W_Q": (d, d), "W_K": (d, d), "W_V": (d, d), "W_D": (d, d), "W_I": (f, d), "W_O": (d, f)}
    return {f"layers.{i}.{target}": shape for i in range(model.num_layers) for target, shape in shapes.items()}


class RandomMasks(Mapping[str, BoolArray]):
    """The masks of a config by logical weight name, made when asked for; dense weights are not in it."""

    def __init__(self, model: ModelConfig, sparsity: SparsityConfig) -> None:
        self.sparsity = sparsity
        self.shapes = {
            name: shape
            for name, shape in logical_weights(model).items()
            if sparsity.level > 0 and name.rsplit(".", 1)[1] in sparsity.targets
        }

    def __getitem__(self, name: str) -> BoolArray:
        return make_mask(name, self.shapes[name], self.sparsity)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: Any) -> bool:
        return name in self.shapes  # Mapping's own test would make the mask
