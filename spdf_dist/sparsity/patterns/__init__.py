"""Sparsity patterns by their name in a config.

A package adds a pattern through an entry point of the group ``spdf.patterns``. It names a class with ``syntax`` (the
pattern's notation), ``parse(text)`` (an instance, or None for the text of another pattern) and the methods of
``Pattern``.
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
    """The pattern that ``text`` names. Raises UserError for an unknown pattern."""
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
