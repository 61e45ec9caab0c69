"""Dense linear layer through the faster of the two GEMM libraries inside torch: what a sparse product must beat.

`torch.nn.functional.linear` hands float32 products on the CPU to MKL, which on AMD processors stays behind oneDNN, by
up to a factor of two; oneDNN lies in the same wheel. The choice is a rule, not a measurement: a run must give the same
bits when it is continued. Legend: T tokens, O out, I in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from spdf_kernels import native

_ONEDNN_IS_FASTER = torch.backends.mkldnn.is_available() and not native.is_intel()
_FEW_TOKENS = 16  # below, a product is one pass over the weight and the libraries do not differ
# dW takes dy transposed, which torch copies for oneDNN and not for MKL: up to this many inputs that decides.
_DW_BY_MKL_UP_TO = 1024


def dense_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """y [..., out] = x [..., in] weight^T + bias for weight [out, in] and bias [out]; differentiable in all three.

    float32 on a CPU that is not Intel's: the products run through oneDNN, but for dW up to 1,024 inputs. Else, for
    less than 16 tokens, in forward mode and under autocast, torch.nn.functional.linear. Errors are those of
    torch.nn.functional.linear.
    """
    tokens = x.shape[:-1].numel()
    if not takes_onednn(x) or tokens < _FEW_TOKENS or not _fits(x, weight, bias):
        return torch.nn.functional.linear(x, weight, bias)
    y_TO = onednn_linear(x.reshape(tokens, x.shape[-1]), weight, bias)
    return y_TO.view(*x.shape[:-1], weight.shape[0])


def _fits(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether the shapes are the plain ones; empty weights, broadcast biases and errors are left to torch."""
    return (
        weight.dtype == x.dtype
        and weight.device == x.device
        and weight.dim() == 2
        and weight.numel() > 0
        and x.shape[-1:] == weight.shape[1:]
        and (bias is None or (bias.dtype == x.dtype and bias.device == x.device and bias.shape == weight.shape[:1]))
    )


def takes_onednn(x: torch.Tensor) -> bool:
    """Whether `dense_linear` hands this operand's products to oneDNN: float32 in the memory of a CPU not Intel's."""
    return (
        _ONEDNN_IS_FASTER
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and forward_ad._current_level < 0  # the operator has no forward mode
        and not torch.is_autocast_enabled("cpu")  # nor an autocast rule
    )


@torch.library.custom_op("spdf::onednn_linear", mutates_args=())
def onednn_linear(x_TI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    """y [T, O] = x weight^T + bias, float32, through oneDNN; operands may be transposed views."""
    if bias_O is not None:
        bias_O = bias_O.contiguous()  # oneDNN reads it as dense whatever its strides are
    return torch.ops.mkldnn._linear_pointwise(x_TI, weight_OI, bias_O, "none", [], "")


@onednn_linear.register_fake
def _(x_TI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    return x_TI.new_empty(x_TI.shape[0], weight_OI.shape[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x_TI, weight_OI, _ = inputs
    ctx.save_for_backward(x_TI, weight_OI)


def _backward(ctx: Any, dy_TO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x_TI, weight_OI = ctx.saved_tensors
    dy_TO = dy_TO.contiguous()
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad
    dx_TI = onednn_linear(dy_TO, weight_OI.t(), None) if needs_x else None
    dweight_OI = None
    if needs_weight:
        by_mkl = torch.backends.mkl.is_available() and x_TI.shape[1] <= _DW_BY_MKL_UP_TO
        dweight_OI = dy_TO.t() @ x_TI if by_mkl else onednn_linear(dy_TO.t(), x_TI.t(), None)
    dbias_O = dy_TO.sum(0) if needs_bias else None
    return dx_TI, dweight_OI, dbias_O


onednn_linear.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.spdf.onednn_linear)
def _flops(x_shape: torch.Size, weight_shape: torch.Size, *args: Any, **kwargs: Any) -> int:
    return 2 * x_shape[0] * x_shape[1] * weight_shape[0]
