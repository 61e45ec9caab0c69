"""Shapes, masks and operands that the lab measures.

Legend: T tokens, O out, I in, B block edge, R block rows, C block columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from spdf_kernels import SparsityPattern
from torch import Tensor

XL = {"qkv": (6144, 2048), "projection": (2048, 2048), "expand": (8192, 2048), "contract": (2048, 8192)}
SMALL = {"qkv": (2304, 768), "projection": (768, 768), "expand": (3072, 768), "contract": (768, 3072)}
SMOKE = {"qkv": (384, 128), "contract": (128, 256)}
"""Products of a layer, [out, in]: GPT-3 XL, GPT-2 Small, and small ones for the interpreter."""


@dataclass(frozen=True)
class Bench:
    """The device and the operands of a measurement."""

    device: torch.device
    tokens: int
    smoke: bool
    """Run every path once, on a pretended GPU. Times are meaningless."""

    def milliseconds(self, action: object, budget: float = 100.0) -> float:
        """Median milliseconds of many runs, with empty caches."""
        if self.smoke:
            action()  # type: ignore[operator]
            return 1.0
        from triton.testing import do_bench

        return float(do_bench(action, warmup=25, rep=budget, return_mode="median"))

    def random(self, *shape: int) -> Tensor:
        """Random bfloat16 values, not zeros, which a GPU multiplies faster."""
        return torch.randn(*shape, device=self.device, dtype=torch.bfloat16)


def balanced_grid(rows: int, columns: int, kept: int, seed: int = 0) -> Tensor:
    """Blocks, bool [R, C]: `kept` per row, and equally many per column if that divides; in random order."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.zeros(rows, columns, dtype=torch.bool)
    place = (torch.arange(rows)[:, None] * kept + torch.arange(kept)) % columns
    grid.scatter_(1, place, True)
    return grid[torch.randperm(rows, generator=generator)][:, torch.randperm(columns, generator=generator)]


def unbalanced_grid(rows: int, columns: int, density: float, seed: int = 0) -> Tensor:
    """Blocks kept at random over the whole weight, as with `pattern: block:B`."""
    order = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(seed))
    grid = torch.zeros(rows * columns, dtype=torch.bool)
    grid[order[: round(density * rows * columns)]] = True
    return grid.view(rows, columns)


@dataclass(frozen=True)
class Weight:
    """A sparse weight, operands of its products, and the dense weight."""

    pattern: SparsityPattern
    values: Tensor
    dense: Tensor
    x: Tensor
    dy: Tensor

    @classmethod
    def make(cls, bench: Bench, mask: Tensor) -> Weight:
        """Random values for a mask, bool [O, I]."""
        mask = mask.to(bench.device)
        out, inputs = mask.shape
        dense = torch.where(mask, bench.random(out, inputs) * 0.02, 0)
        pattern = SparsityPattern.from_mask(mask)
        return cls(pattern, dense[mask], dense, bench.random(bench.tokens, inputs), bench.random(bench.tokens, out))


def relative_error(result: Tensor, reference: Tensor) -> float:
    """Relative error in the Frobenius norm; NaN if either tensor has a NaN."""
    return float((result.float() - reference.float()).norm() / reference.float().norm())
