"""The custom operators: tensors and the integer handle of a pattern in, tensors out.

`spdf::spmm`, `spdf::spmm_transposed` and `spdf::sddmm` are bilinear and each other's derivatives, so autograd of any
order stays within the three. Legend: T tokens, O out, I in, K kept entries.

The size of a result is an argument of its own: torch.compile caches graphs on disk, and a handle stands for
another pattern in another process.

They are registered through torch.library.Library: torch.library.custom_op wraps each call in three more Python layers,
which take 50 us when the product before has emptied the caches; a whole product may take two milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from spdf_kernels import native
from spdf_kernels.backends import backend_for
from spdf_kernels.pattern import SparsityPattern, pattern_of

_library = torch.library.Library("spdf", "DEF")


def _operator(function: Callable[..., torch.Tensor]) -> torch._ops.OpOverload:
    """Registers `function` for every device, with the schema that its annotations give."""
    name = function.__name__
    _library.define(name + torch.library.infer_schema(function, mutates_args=()), tags=torch.Tag.pt2_compliant_tag)
    _library.impl(name, function, "CompositeExplicitAutograd")
    return getattr(torch.ops.spdf, name).default


def _check(
    pattern: SparsityPattern,
    sizes: tuple[object, ...],
    expected: tuple[object, ...],
    left: torch.Tensor,
    right: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> None:
    """Native kernels read as far as the pattern says, and anyone may call an operator: ValueError or TypeError."""
    if sizes != expected:
        raise ValueError(f"operands of sizes {sizes} do not fit {pattern!r}: they must be {expected}")
    dtype = left.dtype
    if dtype not in native.DTYPES or right.dtype != dtype or (bias is not None and bias.dtype != dtype):
        dtypes = [tensor.dtype for tensor in (left, right, bias) if tensor is not None]
        raise TypeError(f"operands must be all float32 or all bfloat16, not {dtypes}")
    device = pattern.device
    if left.device != device or right.device != device or (bias is not None and bias.device != device):
        raise ValueError(f"operands must be on {device}, as the pattern's mask was")


def _tokens(operand: torch.Tensor) -> int:
    shape = operand.shape
    return shape[0] if shape else 0


@_operator
def spmm(
    x_TI: torch.Tensor, values_K: torch.Tensor, bias_O: torch.Tensor | None, handle: int, out_features: int
) -> torch.Tensor:
    """y [T, O] = x W^T + bias."""
    pattern = pattern_of(handle)
    rows, columns = pattern.shape
    sizes = (x_TI.shape, values_K.shape, (rows,) if bias_O is None else bias_O.shape, out_features)
    _check(pattern, sizes, ((_tokens(x_TI), columns), (pattern.nnz,), (rows,), rows), x_TI, values_K, bias_O)
    return backend_for(pattern, x_TI.dtype).spmm(x_TI, values_K, bias_O, pattern)


@_operator
def spmm_transposed(dy_TO: torch.Tensor, values_K: torch.Tensor, handle: int, in_features: int) -> torch.Tensor:
    """dx [T, I] = dy W."""
    pattern = pattern_of(handle)
    rows, columns = pattern.shape
    sizes = (dy_TO.shape, values_K.shape, in_features)
    _check(pattern, sizes, ((_tokens(dy_TO), rows), (pattern.nnz,), columns), dy_TO, values_K)
    return backend_for(pattern, dy_TO.dtype).spmm_t(dy_TO, values_K, pattern)


@_operator
def sddmm(dy_TO: torch.Tensor, x_TI: torch.Tensor, handle: int, nnz: int) -> torch.Tensor:
    """dvalues [K]: dy^T x at the kept entries."""
    pattern = pattern_of(handle)
    rows, columns = pattern.shape
    tokens = _tokens(dy_TO)
    _check(pattern, (dy_TO.shape, x_TI.shape, nnz), ((tokens, rows), (tokens, columns), pattern.nnz), dy_TO, x_TI)
    return backend_for(pattern, dy_TO.dtype).sddmm(dy_TO, x_TI, pattern)


@torch.library.register_fake("spdf::spmm", lib=_library)
def _(
    x_TI: torch.Tensor, values_K: torch.Tensor, bias_O: torch.Tensor | None, handle: int, out_features: int
) -> torch.Tensor:
    return x_TI.new_empty(x_TI.shape[0], out_features)


@torch.library.register_fake("spdf::spmm_transposed", lib=_library)
def _(dy_TO: torch.Tensor, values_K: torch.Tensor, handle: int, in_features: int) -> torch.Tensor:
    return dy_TO.new_empty(dy_TO.shape[0], in_features)


@torch.library.register_fake("spdf::sddmm", lib=_library)
def _(dy_TO: torch.Tensor, x_TI: torch.Tensor, handle: int, nnz: int) -> torch.Tensor:
    return x_TI.new_empty(nnz)


def _keep_for_spmm(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x_TI, values_K, bias_O, handle, _ = inputs
    ctx.save_for_backward(x_TI, values_K)
    ctx.has_bias, ctx.handle, ctx.pattern = bias_O is not None, handle, pattern_of(handle)


def _spmm_backward(ctx: Any, dy_TO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x_TI, values_K = ctx.saved_tensors
    dy_TO = dy_TO.contiguous()
    needs_x, needs_values, needs_bias, _, _ = ctx.needs_input_grad
    dx_TI = spmm_transposed(dy_TO, values_K, ctx.handle, x_TI.shape[1]) if needs_x else None
    dvalues_K = sddmm(dy_TO, x_TI, ctx.handle, values_K.shape[0]) if needs_values else None
    dbias_O = dy_TO.sum(0) if ctx.has_bias and needs_bias else None
    return dx_TI, dvalues_K, dbias_O, None, None


def _keep_for_transposed(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    dy_TO, values_K, handle, _ = inputs
    ctx.save_for_backward(dy_TO, values_K)
    ctx.handle, ctx.pattern = handle, pattern_of(handle)


def _transposed_backward(ctx: Any, grad_TI: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    dy_TO, values_K = ctx.saved_tensors
    grad_TI = grad_TI.contiguous()
    ddy_TO = spmm(grad_TI, values_K, None, ctx.handle, dy_TO.shape[1])
    return ddy_TO, sddmm(dy_TO, grad_TI, ctx.handle, values_K.shape[0]), None, None


def _keep_for_sddmm(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    dy_TO, x_TI, handle, _ = inputs
    ctx.save_for_backward(dy_TO, x_TI)
    ctx.handle, ctx.pattern = handle, pattern_of(handle)


def _sddmm_backward(ctx: Any, grad_K: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    dy_TO, x_TI = ctx.saved_tensors
    grad_K = grad_K.contiguous()
    ddy_TO = spmm(x_TI, grad_K, None, ctx.handle, dy_TO.shape[1])
    return ddy_TO, spmm_transposed(dy_TO, grad_K, ctx.handle, x_TI.shape[1]), None, None


torch.library.register_autograd("spdf::spmm", _spmm_backward, setup_context=_keep_for_spmm, lib=_library)
torch.library.register_autograd(
    "spdf::spmm_transposed", _transposed_backward, setup_context=_keep_for_transposed, lib=_library
)
torch.library.register_autograd("spdf::sddmm", _sddmm_backward, setup_context=_keep_for_sddmm, lib=_library)


# Two operations a token and kept entry: what the products execute, for torch's FLOP counter.
@register_flop_formula([torch.ops.spdf.spmm, torch.ops.spdf.spmm_transposed])
def _spmm_flops(tokens_shape: torch.Size, values_shape: torch.Size, *args: Any, **kwargs: Any) -> int:
    return 2 * tokens_shape[0] * values_shape[0]


@register_flop_formula(torch.ops.spdf.sddmm)
def _sddmm_flops(dy_shape: torch.Size, x_shape: torch.Size, handle: int, nnz: int, **kwargs: Any) -> int:
    return 2 * dy_shape[0] * nnz
