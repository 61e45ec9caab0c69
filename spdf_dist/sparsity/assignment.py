"""The pattern and level of each sparse weight of a model, from its config.

Masks, counts, validation and accounting all derive from this assignment. It does not need torch and makes no masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import TypeVar

from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import SparsityConfig
from spdf_dist.sparsity.patterns import Pattern, parse_pattern
from spdf_dist.sparsity.patterns.base import Shape, exact

V = TypeVar("V")

COARSE = 0.005
"""Difference between the real and the requested sparsity above which ``remarks`` reports it."""


@dataclass(frozen=True)
class SparseWeight:
    """One weight that has a mask."""

    name: str
    """Logical name, such as ``layers.0.W_Q``."""
    shape: Shape
    pattern: Pattern
    level: Fraction
    """Requested share of pruned entries. A pattern rounds it to whole entries or blocks."""

    @property
    def kept(self) -> int:
        """Number of entries that the mask keeps."""
        return self.pattern.kept_count(self.name, self.shape, self.level)

    @property
    def numel(self) -> int:
        """Number of all entries, kept and pruned."""
        return self.shape[0] * self.shape[1]

    def check(self) -> None:
        """Raise UserError unless the pattern fits the shape and level."""
        self.pattern.check(self.name, self.shape, self.level)


def leaf(name: str) -> str:
    """The last part of a logical name: ``W_Q`` for ``layers.0.W_Q``."""
    return name.rsplit(".", 1)[-1]


def by_glob(key: str, globs: Mapping[str, V], names: list[str]) -> dict[str, V]:
    """The value of the first glob that matches each name or its last part.

    Raises UserError for a glob that matches no name, or only names that earlier globs match.
    """
    found: dict[str, V] = {}
    for glob, value in globs.items():
        matching = [name for name in names if fnmatchcase(name, glob) or fnmatchcase(leaf(name), glob)]
        new = [name for name in matching if name not in found]
        if not matching:
            example = f"; the names are like {names[0]}" if names else ": sparsity.targets is empty"
            raise UserError(f"{key}: '{glob}' matches no weight of sparsity.targets{example}")
        if not new:
            raise UserError(f"{key}: '{glob}' has no effect: earlier globs match all of its weights")
        found |= dict.fromkeys(new, value)
    return found


def sparse_weights(shapes: Mapping[str, Shape], sparsity: SparsityConfig) -> dict[str, SparseWeight]:
    """The sparse weights among ``shapes``, by name, in the order of ``shapes``.

    Args:
        shapes: [out, in] of every logical weight of the model, by name.

    Raises:
        UserError: a glob has no effect, or a pattern is unknown.
    """
    names = [name for name in shapes if leaf(name) in sparsity.targets]
    own_levels = by_glob("sparsity.levels", sparsity.levels, names)
    own_patterns = by_glob("sparsity.patterns", sparsity.patterns, names)
    levels = {name: exact(level) for name, level in own_levels.items()}
    rest = {name: shapes[name] for name in names if name not in levels}
    if sparsity.distribution == "er" and sparsity.level > 0 and rest:
        levels |= erdos_renyi(rest, exact(sparsity.level))
    else:
        levels |= dict.fromkeys(rest, exact(sparsity.level))
    return {
        name: SparseWeight(name, shapes[name], parse_pattern(own_patterns.get(name, sparsity.pattern)), levels[name])
        for name in names
        if levels[name] > 0
    }


def erdos_renyi(shapes: Mapping[str, Shape], level: Fraction) -> dict[str, Fraction]:
    """Levels with densities proportional to (in + out) / (in * out). The mean density over all entries is 1 - level.

    A weight whose density would exceed 1 is dense, and the other weights share the remaining non-zeros.
    Source: Mocanu et al. (2018); Evci et al. (2020), section 3.
    """
    dense: set[str] = set()
    while True:
        sparse = {name: shape for name, shape in shapes.items() if name not in dense}
        wanted = (1 - level) * sum(r * c for r, c in shapes.values()) - sum(
            shapes[name][0] * shapes[name][1] for name in dense
        )
        scale = wanted / sum(r + c for r, c in sparse.values()) if sparse else Fraction(0)
        densities = {name: scale * Fraction(r + c, r * c) for name, (r, c) in sparse.items()}
        over = {name for name, density in densities.items() if density >= 1}
        if not over:
            return {name: 1 - densities.get(name, Fraction(1)) for name in shapes}
        dense |= over


def real_level(weights: Mapping[str, SparseWeight]) -> float:
    """The share of entries of these weights that their masks prune; 0 without any weight."""
    numel = sum(weight.numel for weight in weights.values())
    return 1 - sum(weight.kept for weight in weights.values()) / numel if numel else 0.0


def remarks(shapes: Mapping[str, Shape], sparsity: SparsityConfig) -> list[str]:
    """One line per difference between the masks and the requested sparsity; empty when they agree."""
    weights = sparse_weights(shapes, sparsity)
    asked = sum(weight.level * weight.numel for weight in weights.values()) / max(
        1, sum(weight.numel for weight in weights.values())
    )
    real = real_level(weights)
    if abs(real - asked) <= COARSE:
        return []
    untouched = sorted({leaf(w.name) for w in weights.values() if w.kept == w.numel})
    more = f"; {', '.join(untouched)} keep all their weights" if untouched else ""
    return [
        f"sparsity.level: {float(asked):g} is set, but the masks prune {real:.4g} of the target weights, because "
        f"{sparsity.pattern} is too coarse for their shapes{more}"
    ]
