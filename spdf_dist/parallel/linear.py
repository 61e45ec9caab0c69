"""Column- and row-parallel linears whose logical weights may be sparse, in either execution.

Shapes: T tokens of a sequence, B sequences, I inputs, O outputs of this rank.

A column-parallel linear divides its outputs among the tensor ranks. It may stack several logical weights that share
their input (Q, K and V). A row-parallel linear divides its inputs and sums its outputs over the ranks. With `masked` it
stores a dense weight whose pruned entries stay zero. With `compressed` it stores the 1-D vector of kept values, so that
gradient, moments and communication are proportional to density.

They replace megatron-core's ColumnParallelLinear and RowParallelLinear, which always store a dense weight.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from spdf_kernels import SparsityPattern, dense_linear, sparse_linear
from torch import Tensor, nn

from spdf_dist.model.architecture import TensorSpec
from spdf_dist.parallel.layout import TensorShard
from spdf_dist.parallel.megatron_core import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from spdf_dist.parallel.sequence import summed_gradient
from spdf_dist.sparsity.masks import BoolArray


class MaskGradient(torch.autograd.Function):
    """The identity on a masked weight. Its backward pass sets the gradient of pruned entries to zero.

    It is part of autograd because a hook after accumulation runs too late for ZeRO's reduction. It selects entries
    instead of multiplying by the mask, because a product would keep a NaN.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return torch.where(mask, gradients[0], 0), None


class DenseGradient(torch.autograd.Function):
    """The identity on a linear's output. Its backward pass adds dY^T X, the gradient of all entries, to a buffer."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, sum_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.sum_OI = sum_OI
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        ctx.sum_OI += gradients[0].flatten(0, -2).t() @ x.flatten(0, -2)
        return gradients[0], None, None


class ParallelLinear(nn.Module):
    """This rank's slice of one or more stacked logical linears.

    Attributes:
        weight: [O, I] (dense or masked) or [nnz] (compressed), with the attribute ``shards`` (see layout.py).
        bias: [O] or None, with ``shards``. If the inputs are divided, it is the bias of the whole output.
        execution: `dense`, `masked` or `compressed`.
    """

    def __init__(
        self,
        *_sizes: int,
        weights: Sequence[TensorSpec],
        biases: Sequence[TensorSpec],
        tensor_rank: int,
        tensor_size: int,
        masks: Mapping[str, BoolArray],
        execution: str,
        dtype: torch.dtype,
        sequence: bool = False,
        **_megatron: Any,
    ) -> None:
        """Create the parameters, uninitialised.

        Args:
            weights: the logical weights, which share their inputs and are divided along the same dimension.
            biases: one per weight, or empty.
            tensor_rank: of this process.
            tensor_size: number of tensor ranks.
            masks: global masks by weight name. A linear without any is `dense`.
            execution: `masked` or `compressed`, for a linear with masks.
            dtype: of the parameters.
            sequence: whether the tensor ranks divide the tokens of a column-parallel linear's input and of a
                row-parallel linear's output.

        megatron-core passes sizes and options of its own, which are ignored because the specs hold them.
        """
        super().__init__()
        dim = weights[0].shard_dim or 0
        self.column_parallel = dim == 0
        self.sequence = sequence
        self.execution = execution if any(weight.name in masks for weight in weights) else "dense"
        self.pattern: SparsityPattern | None = None
        self.dense_gradient_OI: Tensor | None = None

        ranges = [
            (tensor_rank * w.shape[dim] // tensor_size, (tensor_rank + 1) * w.shape[dim] // tensor_size)
            for w in weights
        ]
        local_masks: list[BoolArray | None] = []
        for weight, (start, stop) in zip(weights, ranges, strict=True):
            mask = masks.get(weight.name)
            if mask is not None:
                mask = np.ascontiguousarray(mask[start:stop] if dim == 0 else mask[:, start:stop])
            local_masks.append(mask)
        rows = [r[1] - r[0] if dim == 0 else weight.shape[0] for r, weight in zip(ranges, weights, strict=True)]
        columns = ranges[0][1] - ranges[0][0] if dim == 1 else weights[0].shape[1]

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
        self.bias = nn.Parameter(torch.empty(sum(rows), dtype=dtype)) if biases else None

        weight_shards, row, element = [], 0, 0
        for weight, (start, stop), mask, count in zip(weights, ranges, local_masks, rows, strict=True):
            kept = count * columns if mask is None else int(mask.sum())
            offset, length = (element, kept) if self.execution == "compressed" else (row, count)
            held = None if mask is None else functools.partial(self.mask_rows, row, count)
            weight_shards.append(TensorShard(weight.name, weight.shape, dim, start, stop, offset, length, held))
            row += count
            element += kept
        self.weight.shards = tuple(weight_shards)  # type: ignore[attr-defined]
        if self.bias is not None:
            bias_shards, row = [], 0
            for bias, (start, stop), count in zip(biases, ranges, rows, strict=True):
                first, last = (0, count) if bias.shard_dim is None else (start, stop)
                bias_shards.append(TensorShard(bias.name, bias.shape, bias.shard_dim, first, last, row, count))
                row += count
            self.bias.shards = tuple(bias_shards)  # type: ignore[attr-defined]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ParallelLinear:
        """Move the pattern along with the weight (``to``, ``cuda``), because it is not a tensor of the module."""
        super()._apply(fn, recurse)
        self.move_pattern(self.weight.device)
        return self

    def move_pattern(self, device: torch.device) -> None:
        """Move the pattern of a compressed weight to ``device``."""
        if self.pattern is not None and self.pattern.device != device:
            self.pattern = SparsityPattern.from_mask(self.pattern.mask().to(device))

    def mask_rows(self, row: int, count: int) -> Tensor:
        """The mask, bool [count, I], of ``count`` rows from ``row`` on."""
        return self.full_mask()[row : row + count]

    def local(self, x_TBI: Tensor, bias: Tensor | None) -> Tensor:
        """The product on this rank, [T, B, O], before any sum over the ranks."""
        if self.pattern is not None:
            y_TBO = sparse_linear(x_TBI, self.weight, self.pattern, bias)
        else:
            weight = MaskGradient.apply(self.weight, self.mask) if self.execution == "masked" else self.weight
            y_TBO = dense_linear(x_TBI, weight, bias)
        if self.dense_gradient_OI is not None:
            y_TBO = DenseGradient.apply(y_TBO, x_TBI, self.dense_gradient_OI)
        return y_TBO

    def collect_gradient(self) -> None:
        """Start to sum the gradient of all entries, fp32, over the backward passes until ``take_gradient``."""
        self.dense_gradient_OI = torch.zeros(self.full_mask().shape, device=self.weight.device)

    def take_gradient(self) -> Tensor | None:
        """The collected gradient, fp32 [O, I], or None if none was collected. Ends the collection."""
        gradient, self.dense_gradient_OI = self.dense_gradient_OI, None
        return gradient

    def full_mask(self) -> Tensor:
        """The mask, bool [O, I], of a sparse linear."""
        return self.get_buffer("mask") if self.pattern is None else self.pattern.mask()

    def set_mask(self, mask_OI: Tensor) -> None:
        """Replace the mask by one with the same number of kept entries. The caller must move the values."""
        if self.pattern is None:
            self.get_buffer("mask").copy_(mask_OI)
        else:
            self.pattern = None  # frees its generated code before new code is made
            self.pattern = SparsityPattern.from_mask(mask_OI)

    def expand(self, stored: Tensor) -> Tensor:
        """A copy of the parameter, or of a tensor of its shape, as [O, I] with zeros at pruned entries."""
        if stored.dim() > 1:
            return stored.clone()
        mask_OI = self.full_mask()
        dense = torch.zeros(mask_OI.shape, dtype=stored.dtype, device=stored.device)
        dense[mask_OI] = stored
        return dense

    def compress(self, dense_OI: Tensor) -> Tensor:
        """A tensor [O, I] in the stored form of the parameter: [O, I], or [nnz] if compressed."""
        return dense_OI if self.pattern is None else dense_OI[self.full_mask()]

    def forward(self, x_TBI: Tensor, bias_apart: bool = False) -> tuple[Tensor, Tensor | None]:
        """The output [T, B, O] and, if the inputs are divided or with ``bias_apart``, the bias for the caller to add.

        With ``sequence``, T counts this rank's tokens in a column-parallel input and in a row-parallel output.
        """
        if self.column_parallel:
            enter = gather_from_sequence_parallel_region if self.sequence else copy_to_tensor_model_parallel_region
            if bias_apart:
                return self.local(enter(x_TBI), None), self.bias
            return self.local(enter(x_TBI), self.bias), None
        if self.sequence:
            y_TBO = reduce_scatter_to_sequence_parallel_region(self.local(x_TBI, None))
            return y_TBO, None if self.bias is None else summed_gradient(self.bias)
        return reduce_from_tensor_model_parallel_region(self.local(x_TBI, None)), self.bias
