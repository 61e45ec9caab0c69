"""`sparse_linear`: the linear layer over kept entries only."""

from __future__ import annotations

import torch

from spdf_kernels import ops
from spdf_kernels.pattern import SparsityPattern


def sparse_linear(
    x: torch.Tensor, values: torch.Tensor, pattern: SparsityPattern, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """y [..., out] = x [..., in] W^T + bias, where W [out, in] keeps `values` [nnz] at the pattern's entries.

    The product covers kept entries only: a non-finite x[j] reaches exactly the rows that keep column j. It is
    differentiable in x, values and bias [out], in reverse and forward mode, to any order. The operands share a dtype:
    float32, bfloat16 or float16 (both summed in float32), or float64 (without a kernel, by the back end torch).
    torch.autocast casts them to its dtype, as for torch.nn.functional.linear. A non-contiguous tensor costs one copy.

    Raises TypeError for a wrong type or dtype, ValueError for a wrong shape or device.
    """
    if not isinstance(pattern, SparsityPattern):
        raise TypeError(f"pattern must be a SparsityPattern, not {type(pattern).__name__}")
    out_features, in_features = pattern.shape
    _check("x", x, pattern, values)
    _check("values", values, pattern, values)
    if x.dim() < 1 or x.shape[-1] != in_features:
        raise ValueError(f"x must have shape [..., {in_features}] for {pattern!r}, not {list(x.shape)}")
    if values.dim() != 1 or values.shape[0] != pattern.nnz:
        raise ValueError(f"values must have shape [{pattern.nnz}] for {pattern!r}, not {list(values.shape)}")
    if bias is not None:
        _check("bias", bias, pattern, values)
        if bias.dim() != 1 or bias.shape[0] != out_features:
            raise ValueError(f"bias must have shape [{out_features}] for {pattern!r}, not {list(bias.shape)}")
    if x.dim() == 2:
        return ops.spmm(x, values, bias, pattern.handle, out_features)
    tokens = x.shape[:-1].numel()
    y = ops.spmm(x.reshape(tokens, in_features), values, bias, pattern.handle, out_features)
    return y.view(*x.shape[:-1], out_features)


def _check(name: str, tensor: object, pattern: SparsityPattern, values: object) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch tensor, not {type(tensor).__name__}")
    if isinstance(values, torch.Tensor) and tensor.dtype != values.dtype:
        if torch.is_autocast_enabled(tensor.device.type) and tensor.is_floating_point():
            return
        raise TypeError(f"x, values and bias must share a dtype: {name} is {tensor.dtype}, values {values.dtype}")
    if tensor.device != pattern.device:
        raise ValueError(f"{name} is on {tensor.device}, but the pattern's mask was on {pattern.device}")
