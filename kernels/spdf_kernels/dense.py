"""Dense linear layer through torch's fastest product on this machine, the reference for sparse products.

On the CPU, `torch.nn.functional.linear` calls MKL for float32. On AMD processors MKL is slower than oneDNN, which is in
the same wheel. The choice is a rule and not a measurement, because a continued run must give the same bits.

On a CPU without bf16 instructions torch emulates bfloat16 products, which is many times slower than float32. This
module widens the operands to float32 for the product and rounds the result once. Legend: T tokens, O out, I in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from spdf_kernels import native

_ONEDNN_IS_FASTER = torch.backends.mkldnn.is_available() and not native.is_intel()
_BF16_IS_EMULATED = not (native.multiplies_bf16() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
_FEW_TOKENS = 16  # with fewer tokens a product is one pass over the weight, and the libraries are equally fast
# dW needs dy transposed, which torch copies for oneDNN and not for MKL. With few inputs the copy makes oneDNN slower.
_DW_BY_MKL_UP_TO = 1024


def dense_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """y [..., out] = x [..., in] weight^T + bias for weight [out, in] and bias [out]; differentiable in all three.

    float32 on a CPU that is not Intel's runs through oneDNN, except dW with up to 1,024 inputs. bfloat16 on a CPU
    without bf16 instructions is multiplied in float32. All other cases call torch.nn.functional.linear: fewer than 16
    tokens in float32, forward mode, autocast. Errors are those of torch.nn.functional.linear.
    """
    tokens = x.shape[:-1].numel()
    if is_emulated(x.dtype, x.device) and _plain_mode() and tokens > 0 and _fits(x, weight, bias):
        y_TO = widened_linear(x.reshape(tokens, x.shape[-1]), weight, bias)
        return y_TO.view(*x.shape[:-1], weight.shape[0])
    if not takes_onednn(x) or tokens < _FEW_TOKENS or not _fits(x, weight, bias):
        return torch.nn.functional.linear(x, weight, bias)
    y_TO = onednn_linear(x.reshape(tokens, x.shape[-1]), weight, bias)
    return y_TO.view(*x.shape[:-1], weight.shape[0])


def _fits(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether the shapes are regular; torch handles empty weights, broadcast biases and errors."""
    return (
        weight.dtype == x.dtype
        and weight.device == x.device
        and weight.dim() == 2
        and weight.numel() > 0
        and x.shape[-1:] == weight.shape[1:]
        and (bias is None or (bias.dtype == x.dtype and bias.device == x.device and bias.shape == weight.shape[:1]))
    )


def takes_onednn(x: torch.Tensor) -> bool:
    """Whether `dense_linear` uses oneDNN for this operand: float32 on a CPU that is not Intel's."""
    return _ONEDNN_IS_FASTER and x.dtype == torch.float32 and x.device.type == "cpu" and _plain_mode()


def _plain_mode() -> bool:
    """Whether neither forward mode nor autocast is active; the operators of this module support neither."""
    return forward_ad._current_level < 0 and not torch.is_autocast_enabled("cpu")


def is_emulated(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch emulates products of `dtype`: bfloat16 on a CPU without bf16 instructions."""
    return _BF16_IS_EMULATED and dtype == torch.bfloat16 and device.type == "cpu"


def slow_precision(dtype: torch.dtype) -> str | None:
    """Why training in `dtype` is slow on this CPU, and what to set instead; None if it is not slow.

    Linear layers run at the speed of float32. So does the trainer's attention, which is widened too.
    """
    if not is_emulated(dtype, torch.device("cpu")):
        return None
    return (
        "this CPU has no bf16 instructions: linear layers and attention are no faster than in fp32; "
        "set training.precision=fp32 unless memory is short"
    )


@torch.library.custom_op("spdf::onednn_linear", mutates_args=())
def onednn_linear(x_TI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    """y [T, O] = x weight^T + bias, float32, through oneDNN; operands may be transposed views."""
    if bias_O is not None:
        bias_O = bias_O.contiguous()  # oneDNN ignores its strides
    return torch.ops.mkldnn._linear_pointwise(x_TI, weight_OI, bias_O, "none", [], "")


@onednn_linear.register_fake
def _(x_TI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    return x_TI.new_empty(x_TI.shape[0], weight_OI.shape[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x_TI, weight_OI, _ = inputs
    ctx.save_for_backward(x_TI, weight_OI)


def _dweight_f32(dy_TO: torch.Tensor, x_TI: torch.Tensor) -> torch.Tensor:
    """dy^T x [O, I], float32."""
    by_mkl = torch.backends.mkl.is_available() and x_TI.shape[1] <= _DW_BY_MKL_UP_TO
    return dy_TO.t() @ x_TI if by_mkl or not _ONEDNN_IS_FASTER else onednn_linear(dy_TO.t(), x_TI.t(), None)


def _backward(ctx: Any, dy_TO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x_TI, weight_OI = ctx.saved_tensors
    dy_TO = dy_TO.contiguous()
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad
    dx_TI = onednn_linear(dy_TO, weight_OI.t(), None) if needs_x else None
    dweight_OI = _dweight_f32(dy_TO, x_TI) if needs_weight else None
    dbias_O = dy_TO.sum(0) if needs_bias else None
    return dx_TI, dweight_OI, dbias_O


onednn_linear.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op("spdf::widened_linear", mutates_args=())
def widened_linear(x_TI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    """y [T, O] = x weight^T + bias of bfloat16 operands, multiplied and summed in float32, rounded once.

    The backward pass saves the bfloat16 operands, not their float32 copies.
    """
    x_TI, weight_OI = x_TI.float(), weight_OI.float()
    bias_O = None if bias_O is None else bias_O.float()
    linear = onednn_linear if _ONEDNN_IS_FASTER and x_TI.shape[0] >= _FEW_TOKENS else torch.nn.functional.linear
    return linear(x_TI, weight_OI, bias_O).bfloat16()


@widened_linear.register_fake
def _(x_TI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    return x_TI.new_empty(x_TI.shape[0], weight_OI.shape[0])


def _widened_backward(ctx: Any, dy_TO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x_TI, weight_OI = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad
    dy_TO = dy_TO.contiguous()
    dx_TI = widened_linear(dy_TO, weight_OI.t(), None) if needs_x else None
    dweight_OI = _dweight_f32(dy_TO.float(), x_TI.float()).bfloat16() if needs_weight else None
    dbias_O = dy_TO.float().sum(0).bfloat16() if needs_bias else None
    return dx_TI, dweight_OI, dbias_O


widened_linear.register_autograd(_widened_backward, setup_context=_keep)


@register_flop_formula([torch.ops.spdf.onednn_linear, torch.ops.spdf.widened_linear])
def _flops(x_shape: torch.Size, weight_shape: torch.Size, *args: Any, **kwargs: Any) -> int:
    return 2 * x_shape[0] * x_shape[1] * weight_shape[0]
