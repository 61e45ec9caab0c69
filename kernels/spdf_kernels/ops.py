"""The custom operators: tensors and the integer handle of a pattern in, tensors out.

`spdf::spmm`, `spdf::spmm_transposed` and `spdf::sddmm` are bilinear and each other's derivatives, so autograd of any
order stays within the three. Legend: T tokens, O out, I in, K kept entries.

They are registered through torch.library.Library: torch.library.custom_op wraps each call in three more Python layers,
which take 50 us when the product before has emptied the caches; a whole product may take two milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from spdf_kernels import native, plain
from spdf_kernels.backends import backend_for
from spdf_kernels.pattern import pattern_of

_library = torch.library.Library("spdf", "DEF")


def _operator(function: Callable[..., torch.Tensor]) -> torch._ops.OpOverload:
    """Registers `function` for every device, with the schema that its annotations give."""
    name = function.__name__
    _library.define(name + torch.library.infer_schema(function, mutates_args=()), tags=torch.Tag.pt2_compliant_tag)
    _library.impl(name, function, "CompositeExplicitAutograd")
    return getattr(torch.ops.spdf, name).default


@_operator
def spmm(x_TI: torch.Tensor, values_K: torch.Tensor, bias_O: torch.Tensor | None, handle: int) -> torch.Tensor:
    """y [T, O] = x W^T + bias."""
    pattern = pattern_of(handle)
    backend = backend_for(pattern)
    if backend != "torch":
        return native.spmm(x_TI, values_K, bias_O, pattern, backend, transposed=False)
    return plain.spmm(x_TI, values_K, bias_O, pattern)


@_operator
def spmm_transposed(dy_TO: torch.Tensor, values_K: torch.Tensor, handle: int) -> torch.Tensor:
    """dx [T, I] = dy W."""
    pattern = pattern_of(handle)
    backend = backend_for(pattern)
    if backend != "torch":
        return native.spmm(dy_TO, values_K, None, pattern, backend, transposed=True)
    return plain.spmm_transposed(dy_TO, values_K, pattern)


@_operator
def sddmm(dy_TO: torch.Tensor, x_TI: torch.Tensor, handle: int) -> torch.Tensor:
    """dvalues [K]: dy^T x at the kept entries."""
    pattern = pattern_of(handle)
    backend = backend_for(pattern)
    if backend != "torch":
        return native.sddmm(dy_TO, x_TI, pattern, backend)
    return plain.sddmm(dy_TO, x_TI, pattern)


@torch.library.register_fake("spdf::spmm", lib=_library)
def _(x_TI: torch.Tensor, values_K: torch.Tensor, bias_O: torch.Tensor | None, handle: int) -> torch.Tensor:
    return x_TI.new_empty(x_TI.shape[0], pattern_of(handle).shape[0])


@torch.library.register_fake("spdf::spmm_transposed", lib=_library)
def _(dy_TO: torch.Tensor, values_K: torch.Tensor, handle: int) -> torch.Tensor:
    return dy_TO.new_empty(dy_TO.shape[0], pattern_of(handle).shape[1])


@torch.library.register_fake("spdf::sddmm", lib=_library)
def _(dy_TO: torch.Tensor, x_TI: torch.Tensor, handle: int) -> torch.Tensor:
    return x_TI.new_empty(pattern_of(handle).nnz)


def _keep_for_spmm(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x_TI, values_K, bias_O, handle = inputs
    ctx.save_for_backward(x_TI, values_K)
    ctx.has_bias, ctx.handle, ctx.pattern = bias_O is not None, handle, pattern_of(handle)


def _spmm_backward(ctx: Any, dy_TO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x_TI, values_K = ctx.saved_tensors
    dy_TO = dy_TO.contiguous()
    needs_x, needs_values, needs_bias, _ = ctx.needs_input_grad
    dx_TI = spmm_transposed(dy_TO, values_K, ctx.handle) if needs_x else None
    dvalues_K = sddmm(dy_TO, x_TI, ctx.handle) if needs_values else None
    dbias_O = dy_TO.sum(0) if ctx.has_bias and needs_bias else None
    return dx_TI, dvalues_K, dbias_O, None


def _keep_for_transposed(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    dy_TO, values_K, handle = inputs
    ctx.save_for_backward(dy_TO, values_K)
    ctx.handle, ctx.pattern = handle, pattern_of(handle)


def _transposed_backward(ctx: Any, grad_TI: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    dy_TO, values_K = ctx.saved_tensors
    grad_TI = grad_TI.contiguous()
    return spmm(grad_TI, values_K, None, ctx.handle), sddmm(dy_TO, grad_TI, ctx.handle), None


def _keep_for_sddmm(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    dy_TO, x_TI, handle = inputs
    ctx.save_for_backward(dy_TO, x_TI)
    ctx.handle, ctx.pattern = handle, pattern_of(handle)


def _sddmm_backward(ctx: Any, grad_K: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    dy_TO, x_TI = ctx.saved_tensors
    grad_K = grad_K.contiguous()
    return spmm(x_TI, grad_K, None, ctx.handle), spmm_transposed(dy_TO, grad_K, ctx.handle), None


torch.library.register_autograd("spdf::spmm", _spmm_backward, setup_context=_keep_for_spmm, lib=_library)
torch.library.register_autograd(
    "spdf::spmm_transposed", _transposed_backward, setup_context=_keep_for_transposed, lib=_library
)
torch.library.register_autograd("spdf::sddmm", _sddmm_backward, setup_context=_keep_for_sddmm, lib=_library)


def _flops(tokens_shape: torch.Size, *args: Any, **kwargs: Any) -> int:
    """Two operations a token and kept entry: what the products execute, for torch's FLOP counter."""
    handle = kwargs["handle"] if "handle" in kwargs else args[-1]
    return 2 * tokens_shape[0] * pattern_of(handle).nnz


for _packet in (torch.ops.spdf.spmm, torch.ops.spdf.spmm_transposed, torch.ops.spdf.sddmm):
    register_flop_formula(_packet)(_flops)
