"""Random masks. A mask depends only on the sparsity seed, the weight's logical name, its shape, level and pattern.

Scores are 64-bit integers from a counter-based generator. Therefore every rank, device and library version computes
the same mask. Masks are numpy bool arrays [out, in].

Source: SPDF, section 3 and appendix A.1 (random pruning, uniform over layers).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from spdf_dist.config.schema import ModelConfig, SparsityConfig
from spdf_dist.model.architecture import architecture_of
from spdf_dist.sparsity.assignment import SparseWeight, leaf, sparse_weights
from spdf_dist.sparsity.patterns import parse_pattern
from spdf_dist.sparsity.patterns.base import (
    BoolArray,
    MagnitudeScores,
    RandomScores,
    Scores,
    exact,
    keep_lowest,
    pruned_count,
    random_scores,
)

__all__ = ["BoolArray", "MagnitudeScores", "RandomMasks", "keep_lowest", "make_mask", "mask_digest", "pruned_count"]

INPUT_SPACES = {"W_Q": "attention", "W_K": "attention", "W_V": "attention", "W_I": "mlp", "W_G": "mlp", "W_O": "ffn"}
OUTPUT_SPACES = {"W_I": "ffn", "W_G": "ffn"}
"""Weights with the same space share one permutation of their common features, so that a kernel gathers them once per
layer. The order of the MLP's hidden units is free. A weight that is not listed here has its own permutations."""


def permutation(seed: int, name: str, side: str, space: str, count: int) -> np.ndarray:
    """A random order of ``count`` features of a layer, int64 [count]."""
    layer = name.rpartition(".")[0]
    return np.argsort(random_scores(seed, f"{layer}/{space or leaf(name) + side}/permute", count), kind="stable")


def permutations(seed: int, name: str, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Random orders of the outputs (int64 [out]) and of the inputs (int64 [in]).

    Entry [i, j] of the permuted mask is entry [outputs[i], inputs[j]] of the block mask.
    """
    space_in, space_out = INPUT_SPACES.get(leaf(name), ""), OUTPUT_SPACES.get(leaf(name), "")
    return (
        permutation(seed, name, "out", space_out, shape[0]),
        permutation(seed, name, "in", space_in, shape[1]),
    )


def select(weight: SparseWeight, sparsity: SparsityConfig, scores: Scores | None = None) -> BoolArray:
    """The mask [out, in] of one weight, by ``scores`` or else by random scores. Raises UserError for a shape that does
    not fit the pattern."""
    name, shape = weight.name, weight.shape
    weight.check()
    scores = RandomScores(sparsity.seed, name, shape) if scores is None else scores
    mask = weight.pattern.make_mask(name, shape, weight.level, scores)
    if sparsity.permute and weight.pattern.block > 1:
        outputs, inputs = permutations(sparsity.seed, name, shape)
        mask = np.ascontiguousarray(mask[outputs][:, inputs])
    return mask


def make_mask(name: str, shape: tuple[int, int], sparsity: SparsityConfig) -> BoolArray:
    """The mask [out, in] of one logical weight at ``sparsity.level`` and ``pattern``; True is kept.

    Raises UserError when the shape does not fit the pattern.
    """
    if sparsity.level == 0:
        return np.ones(shape, dtype=bool)
    return select(SparseWeight(name, shape, parse_pattern(sparsity.pattern), exact(sparsity.level)), sparsity)


def mask_digest(mask: BoolArray) -> str:
    """SHA-256 (hex) of the shape (two big-endian 64-bit integers) followed by the row-major bits, high bit first."""
    digest = hashlib.sha256(np.array(mask.shape, dtype=">u8").tobytes())
    digest.update(np.packbits(np.ascontiguousarray(mask), bitorder="big").tobytes())
    return digest.hexdigest()


def logical_weights(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Names and [out, in] shapes of the prunable matrices, in the order of the layers."""
    return {name: (t.shape[0], t.shape[1]) for name, t in architecture_of(model).prunable.items()}


class RandomMasks(Mapping[str, BoolArray]):
    """The masks of a config by logical weight name. Each access computes the mask. Dense weights are not included."""

    def __init__(self, model: ModelConfig, sparsity: SparsityConfig) -> None:
        self.sparsity = sparsity
        self.weights = sparse_weights(logical_weights(model), sparsity)

    def __getitem__(self, name: str) -> BoolArray:
        return select(self.weights[name], self.sparsity)

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def __contains__(self, name: Any) -> bool:
        return name in self.weights  # Mapping.__contains__ would compute the mask
