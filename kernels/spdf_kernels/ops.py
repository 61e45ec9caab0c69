"""The custom operators: functions of tensors and the integer handle of a pattern.

`spdf::spmm`, `spdf::spmm_transposed` and `spdf::sddmm` are bilinear, and each is a derivative of the others, so
autograd of any order needs these three only. Legend: T tokens, O out, I in, K kept entries.

The size of a result is a separate argument: torch.compile caches graphs on disk, and in another process a handle
identifies another pattern.

The operators are registered through torch.library.Library. torch.library.custom_op would add three Python layers per
call, which are slow compared with a small product. The derivatives are registered here too, because
torch.library.register_autograd supports reverse mode only and drops tangents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.utils.flop_counter import register_flop_formula

from spdf_kernels.backends import backend_for
from spdf_kernels.pattern import SparsityPattern, pattern_of

_library = torch.library.Library("spdf", "DEF")


def _operator(function: Callable[..., torch.Tensor]) -> torch._ops.OpOverload:
    """Register `function` for every device, with the schema of its annotations."""
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
    """Raise ValueError or TypeError for operands that do not fit the pattern: the kernels do not check bounds."""
    if sizes != expected:
        raise ValueError(f"operands of sizes {sizes} do not fit {pattern!r}: they must be {expected}")
    dtype = left.dtype
    if right.dtype != dtype or (bias is not None and bias.dtype != dtype):
        dtypes = [tensor.dtype for tensor in (left, right, bias) if tensor is not None]
        raise TypeError(f"operands must share a dtype, not have {dtypes}")
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


def _keep_for_spmm(ctx: Any, inputs: tuple[Any, ...]) -> None:
    x_TI, values_K, bias_O, handle, _ = inputs
    ctx.save_for_backward(x_TI, values_K)
    ctx.has_bias, ctx.handle, ctx.pattern = bias_O is not None, handle, pattern_of(handle)


def _spmm_backward(ctx: Any, dy_TO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x_TI, values_K = ctx.saved_tensors
    dy_TO = dy_TO.contiguous()
    _, needs_x, needs_values, needs_bias, _, _ = ctx.needs_input_grad
    dx_TI = spmm_transposed(dy_TO, values_K, ctx.handle, x_TI.shape[1]) if needs_x else None
    dvalues_K = sddmm(dy_TO, x_TI, ctx.handle, values_K.shape[0]) if needs_values else None
    dbias_O = dy_TO.sum(0) if ctx.has_bias and needs_bias else None
    return None, dx_TI, dvalues_K, dbias_O, None, None


def _keep_for_transposed(ctx: Any, inputs: tuple[Any, ...]) -> None:
    dy_TO, values_K, handle, _ = inputs
    ctx.save_for_backward(dy_TO, values_K)
    ctx.handle, ctx.pattern = handle, pattern_of(handle)


def _transposed_backward(ctx: Any, grad_TI: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    dy_TO, values_K = ctx.saved_tensors
    grad_TI = grad_TI.contiguous()
    _, needs_dy, needs_values, _, _ = ctx.needs_input_grad
    ddy_TO = spmm(grad_TI, values_K, None, ctx.handle, dy_TO.shape[1]) if needs_dy else None
    dvalues_K = sddmm(dy_TO, grad_TI, ctx.handle, values_K.shape[0]) if needs_values else None
    return None, ddy_TO, dvalues_K, None, None


def _keep_for_sddmm(ctx: Any, inputs: tuple[Any, ...]) -> None:
    dy_TO, x_TI, handle, _ = inputs
    ctx.save_for_backward(dy_TO, x_TI)
    ctx.handle, ctx.pattern = handle, pattern_of(handle)


def _sddmm_backward(ctx: Any, grad_K: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    dy_TO, x_TI = ctx.saved_tensors
    grad_K = grad_K.contiguous()
    _, needs_dy, needs_x, _, _ = ctx.needs_input_grad
    ddy_TO = spmm(x_TI, grad_K, None, ctx.handle, dy_TO.shape[1]) if needs_dy else None
    dx_TI = spmm_transposed(dy_TO, grad_K, ctx.handle, x_TI.shape[1]) if needs_x else None
    return None, ddy_TO, dx_TI, None, None


def _tangent(op: torch._ops.OpOverload, arguments: tuple[Any, ...]) -> torch.Tensor | None:
    """Tangent of the result; None if no argument has one. Each operator is bilinear in its first two tensors."""
    duals = [forward_ad.unpack_dual(a) if isinstance(a, torch.Tensor) else (a, None) for a in arguments]
    (left, left_tangent), (right, right_tangent), (_, bias_tangent) = duals[:3]
    rest = (None, *arguments[3:]) if op is spmm else arguments[2:]
    terms = [] if left_tangent is None else [op(left_tangent, right, *rest)]
    if right_tangent is not None:
        terms.append(op(left, right_tangent, *rest))
    if bias_tangent is not None:
        terms.append(bias_tangent.expand(left.shape[0], -1) if not terms else bias_tangent)
    return sum(terms[1:], terms[0]) if terms else None


def _differentiable(
    op: torch._ops.OpOverload, backward: Callable[..., Any], keep: Callable[[Any, tuple[Any, ...]], None]
) -> None:
    """Register derivatives: `backward` in reverse mode, the product rule in forward mode.

    `apply` of torch.autograd.Function rejects the transforms of torch.func. An operator handles one level of the
    transforms at a time, as the functions do that torch.func generates. So it has their base class.
    """

    def below_autograd(keyset: torch._C.DispatchKeySet, arguments: tuple[Any, ...]) -> torch.Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            if not torch._C._are_functorch_transforms_active():
                return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)
            with forward_ad._set_fwd_grad_enabled(True):  # it is off for this level only
                return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    def forward(ctx: Any, keyset: torch._C.DispatchKeySet, *arguments: Any) -> torch.Tensor:
        keep(ctx, arguments)
        if not torch._C._are_functorch_transforms_active():
            return below_autograd(keyset, arguments)
        with torch.enable_grad():  # `apply` turned it off for this level only
            return below_autograd(keyset, arguments)

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    apply = type(f"{op._opname}_with_gradient", (_SingleLevelFunction,), methods).apply  # type: ignore[attr-defined]

    def reverse(keyset: torch._C.DispatchKeySet, arguments: tuple[Any, ...]) -> torch.Tensor:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            if torch._C._are_functorch_transforms_active():
                with enable_single_level_autograd_function():
                    return apply(keyset, *arguments)
            return apply(keyset, *arguments)
        return below_autograd(keyset, arguments)

    def kernel(keyset: torch._C.DispatchKeySet, *arguments: Any) -> torch.Tensor:
        if forward_ad._current_level < 0 or (tangent := _tangent(op, arguments)) is None:
            return reverse(keyset, arguments)
        with forward_ad._set_fwd_grad_enabled(False):
            result = reverse(keyset, arguments)  # keeps the duals for backward: forward over reverse
        return forward_ad.make_dual(result, tangent)

    _library.impl(op._opname, kernel, "Autograd", with_keyset=True)


_differentiable(spmm, _spmm_backward, _keep_for_spmm)
_differentiable(spmm_transposed, _transposed_backward, _keep_for_transposed)
_differentiable(sddmm, _sddmm_backward, _keep_for_sddmm)


def _autocast(op: torch._ops.OpOverload, device_type: str, key: str) -> None:
    """Cast operands under torch.autocast, as torch.nn.functional.linear does; float64 stays float64."""
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(*arguments: Any) -> torch.Tensor:
        dtype = torch.get_autocast_dtype(device_type)
        operands = [
            a.to(dtype) if isinstance(a, torch.Tensor) and a.is_floating_point() and a.dtype != torch.float64 else a
            for a in arguments
        ]
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return op(*operands)

    _library.impl(op._opname, kernel, key)


for _op in (spmm, spmm_transposed, sddmm):
    _autocast(_op, "cpu", "AutocastCPU")
    _autocast(_op, "cuda", "AutocastCUDA")


def _fold(batch: torch.Tensor, dim: int) -> torch.Tensor:
    """Concatenate the batches of an operand [T, F]: [batches * T, F]."""
    return batch.movedim(dim, 0).flatten(0, 1)


def _each(op: torch._ops.OpOverload, size: int, in_dims: tuple[int | None, ...], arguments: tuple[Any, ...]) -> Any:
    """Call the operator once per element of the batch, for values that differ between elements."""
    calls = [[a if d is None else a.select(d, i) for a, d in zip(arguments, in_dims, strict=True)] for i in range(size)]
    return torch.stack([op(*call) for call in calls]), 0


@torch.library.register_vmap("spdf::spmm", lib=_library)
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[torch.Tensor, int]:
    x_TI, values_K, bias_O, handle, out_features = arguments
    if in_dims[0] is None or in_dims[1] is not None or in_dims[2] is not None:
        return _each(spmm, info.batch_size, in_dims, arguments)
    y_TO = spmm(_fold(x_TI, in_dims[0]), values_K, bias_O, handle, out_features)
    return y_TO.unflatten(0, (info.batch_size, -1)), 0


@torch.library.register_vmap("spdf::spmm_transposed", lib=_library)
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[torch.Tensor, int]:
    dy_TO, values_K, handle, in_features = arguments
    if in_dims[0] is None or in_dims[1] is not None:
        return _each(spmm_transposed, info.batch_size, in_dims, arguments)
    dx_TI = spmm_transposed(_fold(dy_TO, in_dims[0]), values_K, handle, in_features)
    return dx_TI.unflatten(0, (info.batch_size, -1)), 0


@torch.library.register_vmap("spdf::sddmm", lib=_library)
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[torch.Tensor, int]:
    return _each(sddmm, info.batch_size, in_dims, arguments)


# For torch's FLOP counter: two operations per token and kept entry.
@register_flop_formula([torch.ops.spdf.spmm, torch.ops.spdf.spmm_transposed])
def _spmm_flops(tokens_shape: torch.Size, values_shape: torch.Size, *args: Any, **kwargs: Any) -> int:
    return 2 * tokens_shape[0] * values_shape[0]


@register_flop_formula(torch.ops.spdf.sddmm)
def _sddmm_flops(dy_shape: torch.Size, x_shape: torch.Size, handle: int, nnz: int, **kwargs: Any) -> int:
    return 2 * dy_shape[0] * nnz
