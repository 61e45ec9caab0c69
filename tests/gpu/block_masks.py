"""Block masks and dense references for the tests of the GPU kernels."""

from __future__ import annotations

import torch
from spdf_kernels import SparsityPattern

KINDS = ("balanced", "unbalanced", "empty rows", "full", "one block")


def block_grid(kind: str, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Kept blocks, bool [rows, columns]; about a third are True."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.zeros(rows, columns, dtype=torch.bool)
    if kind == "balanced":  # equal numbers per row, but not per column
        for row in range(rows):
            grid[row, torch.randperm(columns, generator=generator)[: columns // 2]] = True
    elif kind == "full":
        grid[:] = True
    elif kind == "one block":
        grid[rows - 1, columns // 2] = True
    else:
        grid = torch.rand(rows, columns, generator=generator) < 0.35
        grid[0, 0] = True
        grid[1] = kind != "empty rows"
        grid[:, 1] = grid[:, 1] & (kind != "empty rows")
    return grid


def block_mask(grid: torch.Tensor, size: int) -> torch.Tensor:
    """The mask of the entries, bool [rows * size, columns * size]."""
    return grid.repeat_interleave(size, 0).repeat_interleave(size, 1)


class Case:
    """A weight, operands and the three products, computed as dense float32 products."""

    def __init__(
        self, mask: torch.Tensor, tokens: int, dtype: torch.dtype, device: torch.device, seed: int = 0
    ) -> None:
        torch.manual_seed(seed)
        out, inputs = mask.shape
        self.pattern = SparsityPattern.from_mask(mask.to(device))
        weight = torch.randn(out, inputs).to(dtype) * mask
        x, dy, bias = torch.randn(tokens, inputs), torch.randn(tokens, out), torch.randn(out)
        self.weight = weight.to(device)
        self.x, self.dy, self.bias = (tensor.to(device, dtype) for tensor in (x, dy, bias))
        self.values = self.weight[mask.to(device)]
        wide_x, wide_dy, wide_weight = self.x.double(), self.dy.double(), self.weight.double()
        self.y = wide_x @ wide_weight.t()
        self.dx = wide_dy @ wide_weight
        self.dvalues = (wide_dy.t() @ wide_x)[mask.to(device)]


def assert_near(result: torch.Tensor, reference: torch.Tensor) -> None:
    """Assert a relative Frobenius-norm error below 1e-5 (float32), 1e-3 (float16) or 6e-3 (bfloat16). NaN fails."""
    assert result.shape == reference.shape
    error = float((result.double() - reference).norm() / reference.norm().clamp_min(1e-30))
    limit = {torch.bfloat16: 6e-3, torch.float16: 1e-3}.get(result.dtype, 1e-5)
    assert error < limit, f"relative error {error:.1e}"
