"""The blocks of a mask: whether it consists of whole blocks, and the index lists for the kernels.

Shapes: R block rows, C block columns, N kept blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spdf_kernels.pattern import SparsityPattern

BLOCK_SIZES = (128, 64)
"""Edges of blocks that the kernels support, the faster first."""
PLACE_BITS = 12
"""Bits of the block row in `Blocks.place_and_row`; the same as in kernels.py."""


@dataclass(frozen=True)
class Blocks:
    """Kept blocks of one weight, in row-major order. All lists are int32 on the weight's device."""

    size: int
    """Edge B."""
    per_row: int | None
    """Kept blocks per block row if all have the same number of at least one; else None."""
    row: Tensor
    """[N] block row of each block."""
    column: Tensor
    """[N] block column of each block."""
    base: Tensor
    """[N] index of each block's first value / B."""
    kept: Tensor
    """[N] kept blocks in the block row of each block."""
    row_start: Tensor
    """[R + 1] first block of each block row."""
    column_start: Tensor
    """[C + 1] first block of each block column, in the order of the transposed lists."""
    row_T: Tensor
    """`row`, `base`, `kept` and place << PLACE_BITS | row in the order of block columns."""
    base_T: Tensor
    kept_T: Tensor
    place_and_row: Tensor

    @property
    def count(self) -> int:
        """N."""
        return self.row.shape[0]

    @property
    def index_bytes(self) -> int:
        """Size of all lists in bytes."""
        tensors = [value for value in vars(self).values() if isinstance(value, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def block_grid(pattern: SparsityPattern, size: int) -> Tensor | None:
    """The mask by blocks, bool [R, C]; None if `size` does not divide the shape or a block is partly kept."""
    rows, columns = pattern.shape
    if rows % size or columns % size or rows == 0 or columns == 0:
        return None
    counts = pattern.mask().view(rows // size, size, columns // size, size).sum(dim=(1, 3), dtype=torch.int32)
    if bool(((counts != 0) & (counts != size * size)).any()):
        return None
    return counts != 0


def blocks_of(pattern: SparsityPattern, sizes: tuple[int, ...] = BLOCK_SIZES) -> Blocks | None:
    """The blocks of the mask for the first edge of `sizes` that fits it; None if none fits.

    Computed once and stored in the pattern.
    """
    key = f"triton_blocks_{sizes}"
    if key not in pattern.prepared:
        grids = ((size, block_grid(pattern, size)) for size in sizes)
        pattern.prepared[key] = next((index_lists(grid, size) for size, grid in grids if grid is not None), None)
    found: Blocks | None = pattern.prepared[key]
    return found


def why_no_blocks(pattern: SparsityPattern) -> str | None:
    """Why the block kernels do not support a mask; None if they do."""
    if blocks_of(pattern) is not None:
        return None
    sizes = " or ".join(map(str, BLOCK_SIZES))
    return f"the mask is not made of whole blocks of {sizes} at multiples of their edge (unstructured, N:M or permuted)"


def index_lists(grid: Tensor, size: int) -> Blocks:
    """The index lists of a block mask `grid`, bool [R, C]."""
    R, C = grid.shape
    if max(R, C) > 1 << PLACE_BITS:
        raise ValueError(f"a weight of {R} x {C} blocks is too large: at most {1 << PLACE_BITS} a side")
    row, column = grid.nonzero(as_tuple=True)
    per_row, per_column = grid.sum(1), grid.sum(0)
    zero = per_row.new_zeros(1)
    row_start, column_start = (torch.cat([zero, counts.cumsum(0)]) for counts in (per_row, per_column))
    place = torch.arange(len(row), device=grid.device) - row_start[row]
    base, kept = row_start[row] * size + place, per_row[row]
    order = torch.argsort(column * R + row)
    counts = per_row.unique().tolist()
    lists = {
        "row": row,
        "column": column,
        "base": base,
        "kept": kept,
        "row_start": row_start,
        "column_start": column_start,
        "row_T": row[order],
        "base_T": base[order],
        "kept_T": kept[order],
        "place_and_row": (place << PLACE_BITS | row)[order],
    }
    per_row_alike = counts[0] if len(counts) == 1 and counts[0] > 0 else None
    return Blocks(size, per_row_alike, **{name: value.to(torch.int32) for name, value in lists.items()})
