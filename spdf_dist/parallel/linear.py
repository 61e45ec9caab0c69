"""Column- and row-parallel linears whose logical weights may be sparse, in either execution.

Shapes: T tokens of a sequence, B sequences, I inputs, O outputs of this rank.

Column-parallel linears divide outputs over the tensor ranks and take several logical weights stacked (Q, K and V share
their input); row-parallel ones divide inputs and sum over the ranks. `masked` holds a dense weight whose pruned entries
stay zero; `compressed` holds the 1-D vector of kept values, so that gradient, moments and traffic shrink with density.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from spdf_kernels import SparsityPattern, dense_linear, sparse_linear
from torch import Tensor, nn

from spdf_dist.parallel.layout import Piece
from spdf_dist.sparsity.masks import BoolArray


@dataclass(frozen=True)
class LogicalLinear:
    """One logical linear: the global names and shape of its weight and bias."""

    weight: str
    bias: str
    out_features: int
    in_features: int


class MaskGradient(torch.autograd.Function):
    """A masked weight: itself in the forward pass, its gradient zero at pruned entries.

    Inside autograd, because a hook after accumulation comes too late for ZeRO's reduction; by selection, because a
    product with the mask would keep a NaN.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return torch.where(mask, gradients[0], 0), None


class ParallelLinear(nn.Module):
    """This rank's slice of stacked logical linears.

    Attributes: ``weight`` is [O, I] (dense and masked) or [nnz] (compressed), ``bias`` [O] or the whole output's where
    inputs are divided; both carry ``pieces`` (see layout.py). ``execution`` is `dense`, `masked` or `compressed`.
    """

    def __init__(
        self,
        linears: Sequence[LogicalLinear],
        *,
        divide: str,
        tensor_rank: int,
        tensor_size: int,
        masks: Mapping[str, BoolArray],
        execution: str,
        dtype: torch.dtype,
    ) -> None:
        """``divide`` is `outputs` (column-parallel) or `inputs` (row-parallel, one logical linear)."""
        super().__init__()
        dim = {"outputs": 0, "inputs": 1}[divide]
        self.divide = divide
        self.execution = execution if any(linear.weight in masks for linear in linears) else "dense"
        self.pattern: SparsityPattern | None = None

        ranges = []
        local_masks: list[BoolArray | None] = []
        for linear in linears:
            whole = (linear.out_features, linear.in_features)[dim]
            start, stop = tensor_rank * whole // tensor_size, (tensor_rank + 1) * whole // tensor_size
            ranges.append((start, stop))
            mask = masks.get(linear.weight)
            if mask is not None:
                mask = np.ascontiguousarray(mask[start:stop] if dim == 0 else mask[:, start:stop])
            local_masks.append(mask)
        rows = [r[1] - r[0] if dim == 0 else linear.out_features for r, linear in zip(ranges, linears, strict=True)]
        columns = ranges[0][1] - ranges[0][0] if dim == 1 else linears[0].in_features

        if self.execution == "dense":
            stored = torch.empty(sum(rows), columns, dtype=dtype)
        else:
            parts = [np.ones((r, columns), bool) if m is None else m for m, r in zip(local_masks, rows, strict=True)]
            local = torch.from_numpy(np.concatenate(parts))
            if self.execution == "compressed":
                self.pattern = SparsityPattern.from_mask(local)
                stored = torch.empty(self.pattern.nnz, dtype=dtype)
            else:
                stored = torch.empty(sum(rows), columns, dtype=dtype)
                self.register_buffer("mask", local, persistent=False)
        self.weight = nn.Parameter(stored)
        self.bias = nn.Parameter(torch.empty(sum(rows), dtype=dtype))

        weight_pieces, bias_pieces, row, element = [], [], 0, 0
        for linear, (start, stop), mask, count in zip(linears, ranges, local_masks, rows, strict=True):
            kept = count * columns if mask is None else int(mask.sum())
            offset, length = (element, kept) if self.execution == "compressed" else (row, count)
            shape = (linear.out_features, linear.in_features)
            held = None if mask is None else functools.partial(self.mask_rows, row, count)
            weight_pieces.append(Piece(linear.weight, shape, dim, start, stop, offset, length, held))  # type: ignore[arg-type]
            if dim == 0:
                bias_pieces.append(Piece(linear.bias, (linear.out_features,), 0, start, stop, row, count))
            else:
                bias_pieces.append(Piece(linear.bias, (linear.out_features,), None, 0, linear.out_features, 0, count))
            row += count
            element += kept
        self.weight.pieces = tuple(weight_pieces)  # type: ignore[attr-defined]
        self.bias.pieces = tuple(bias_pieces)  # type: ignore[attr-defined]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ParallelLinear:
        """Moves (``to``, ``cuda``): the pattern is no tensor of the module, and follows the weight."""
        super()._apply(fn, recurse)
        if self.pattern is not None and self.pattern.device != self.weight.device:
            self.pattern = SparsityPattern.from_mask(self.pattern.mask().to(self.weight.device))
        return self

    def mask_rows(self, row: int, count: int) -> Tensor:
        """The mask, bool, of ``count`` stored rows from ``row`` on."""
        mask = self.get_buffer("mask") if self.pattern is None else self.pattern.mask()
        return mask[row : row + count]

    def local(self, x_TBI: Tensor, bias: Tensor | None) -> Tensor:
        """The product on this rank alone, through the layer's execution."""
        if self.pattern is not None:
            return sparse_linear(x_TBI, self.weight, self.pattern, bias)
        weight = MaskGradient.apply(self.weight, self.mask) if self.execution == "masked" else self.weight
        return dense_linear(x_TBI, weight, bias)

    def forward(self, x_TBI: Tensor) -> tuple[Tensor, Tensor | None]:
        """Output [T, B, O] and, where inputs are divided, the bias that the caller adds (fused with its residual)."""
        if self.divide == "outputs":
            return self.local(copy_to_tensor_model_parallel_region(x_TBI), self.bias), None
        return reduce_from_tensor_model_parallel_region(self.local(x_TBI, None)), self.bias
