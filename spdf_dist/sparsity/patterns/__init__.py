"""Sparsity patterns by the name that a config gives them.

A package adds one through an entry point of the group ``spdf.patterns``: a class with ``syntax`` (how it is written),
``parse(text)`` (an instance, or None when the text is another pattern's) and the methods of ``Pattern``.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

from spdf_dist.config.errors import UserError
from spdf_dist.sparsity.patterns.balanced import Balanced
from spdf_dist.sparsity.patterns.base import Pattern
from spdf_dist.sparsity.patterns.plain import Block, NOfM, Unstructured
from spdf_dist.sparsity.patterns.stored import FromCheckpoint, MaskFile

__all__ = ["GROUP", "Pattern", "parse_pattern"]

GROUP = "spdf.patterns"
BUILT_IN: tuple[Any, ...] = (NOfM, Block, Balanced, Unstructured, MaskFile, FromCheckpoint)


@lru_cache(maxsize=64)
def parse_pattern(text: str) -> Pattern:
    """The pattern that ``text`` names. Raises UserError when nobody knows it."""
    found = next((pattern for kind in BUILT_IN if (pattern := kind.parse(text)) is not None), None)
    if found is not None:
        return found
    kinds = list(BUILT_IN)
    for point in entry_points(group=GROUP):
        kind = point.load()
        if (pattern := kind.parse(text)) is not None:
            return pattern
        kinds.append(kind)
    known = [kind.syntax for kind in reversed(kinds)]
    raise UserError(
        f"sparsity.pattern: '{text}' is not known: write {', '.join(known[:-1])} or {known[-1]}, as balanced:64 or 2:4"
    )
