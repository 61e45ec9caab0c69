"""The parts of a layer outside its products, fused, with their gradients.

Legend: T rows (tokens), D features of the residual stream, F features of the hidden layer. Tensors may have more
dimensions than two; the last one is the features.

Each pass over the activations is bound by memory. The norm's backward kernel also adds the gradient of the residual
branch and sums the gradients of weight, shift and bias. torch takes a pass for each.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spdf_kernels.triton.availability import current, interpreted, missing

MAX_FEATURES = 8192
"""Largest D: a row is in the registers of one program."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FEATURES = 1024
"""Features per program of the activation functions."""
ACTIVATION_WARPS = 4
WARPS_OF_PROCESSOR = 24
"""Warps per multiprocessor in the norm's backward kernel, which has 80 to 90 registers per thread."""
ACTIVATION_PROGRAMS = 16
"""Programs per multiprocessor in the activation functions."""
ROTARY_FEATURES = 1024
"""Features per program of rotary positions, at most; they are whole heads."""
RANDOM_BITS = 24
"""Bits of a random number of dropout."""


def block_of(features: int) -> int:
    """The features of a row, rounded up to a power of two of at least 128."""
    return max(128, 1 << (features - 1).bit_length())


def warps_of(block: int) -> int:
    """Warps per program of a row: 8 features per thread, which are 16 bytes of bf16."""
    return max(1, min(16, block // 256))


class Dropout(NamedTuple):
    """Dropout of one place in one forward pass. The same seed drops the same features."""

    probability: float
    seed: int
    """Of 62 bits."""

    @property
    def arguments(self) -> tuple[int, int, float]:
        """Seed, threshold and scale for the kernels. The highest bit keeps the seed a 64-bit argument."""
        threshold = round(self.probability * 2**RANDOM_BITS)
        return self.seed | 1 << 62, threshold, 1 / (1 - self.probability)


NOTHING_DROPPED = (1 << 62, 0, 1.0)


def unusable(x: Tensor) -> str | None:
    """Why the kernels do not compute on activations like ``x``; None if they do."""
    if x.device.type != ("cpu" if interpreted() else "cuda"):
        return f"the fused kernels run on CUDA devices, not on {x.device}"
    if x.dtype not in DTYPES:
        return f"the fused kernels do not compute in {x.dtype}"
    if x.shape[-1] > MAX_FEATURES:
        return f"the fused kernels take at most {MAX_FEATURES} features, not {x.shape[-1]}"
    return why_not(x.device)


@functools.cache
def why_not(device: torch.device) -> str | None:
    """Why the kernels are not used on a device, after a small trial; None if they are. A failure is reported once."""
    reason = missing()
    if reason is None and not interpreted():
        reason = trial(device)
    if reason is not None:
        warnings.warn(f"norms and activation functions run in torch: {reason}", stacklevel=2)
    return reason


def _kernels() -> ModuleType:
    from spdf_kernels.triton import layer_kernels  # imports Triton

    return layer_kernels


def _programs(device: torch.device, rows: int, per_processor: int, columns: int = 1) -> int:
    """Programs along the rows. The number depends on the chip and the sizes only."""
    from spdf_kernels.triton.products import chip

    return max(1, min(rows, per_processor * chip(device).processors // columns))


class AddNorm(torch.autograd.Function):
    """(h, y): the residual stream after an addition, and its norm. See `add_norm`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        weight: Tensor | None,
        shift: Tensor | None,
        eps: float,
        dropout: Dropout | None,
    ) -> tuple[Tensor, Tensor | None]:
        x = x.contiguous()
        residual = None if residual is None else residual.contiguous()
        D = x.shape[-1]
        T = x.numel() // max(D, 1)
        block = block_of(D)
        h = x if residual is None else torch.empty_like(x)
        y = None if weight is None else torch.empty_like(x)
        mean, rstd = torch.empty(2, T, dtype=torch.float32, device=x.device)
        if x.numel():
            with current(x.device):
                _kernels().add_norm[(T,)](
                    x, bias, residual, weight, shift, h, y, mean, rstd, D, eps,
                    *(NOTHING_DROPPED if dropout is None else dropout.arguments),
                    BLOCK=block, ADD=residual is not None, BIAS=bias is not None, DROP=dropout is not None,
                    NORM=weight is not None, CENTRED=shift is not None, num_warps=warps_of(block),
                )  # fmt: skip
        ctx.save_for_backward(h if weight is not None else None, weight, mean, rstd)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.shift_dtype = None if shift is None else shift.dtype
        ctx.dropout, ctx.adds = dropout, residual is not None
        ctx.set_materialize_grads(False)
        return (x.view_as(x) if residual is None else h), y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        h, weight, mean, rstd = ctx.saved_tensors
        dh, dy = (None if gradient is None else gradient.contiguous() for gradient in gradients)
        norm = weight is not None and dy is not None
        bias, dropout = ctx.bias_dtype is not None, ctx.dropout is not None
        known = dy if dh is None else dh
        if known is None:
            return (None,) * 7
        D = known.shape[-1]
        T = known.numel() // max(D, 1)
        block = block_of(D)
        programs = _programs(known.device, T, WARPS_OF_PROCESSOR // warps_of(block))
        dresidual = torch.empty_like(known) if norm else dh
        dx = torch.empty_like(known) if dropout else dresidual
        sums = torch.empty(3, programs, D, dtype=torch.float32, device=known.device)
        if known.numel() == 0:
            sums.zero_()
        elif norm or bias or dropout:
            with current(known.device):
                _kernels().add_norm_backward[(programs,)](
                    dy, dh, h, weight, mean, rstd, dresidual, dx, sums, T, D,
                    *(ctx.dropout.arguments if dropout else NOTHING_DROPPED),
                    BLOCK=block, DH=dh is not None, BIAS=bias, DROP=dropout, NORM=norm,
                    CENTRED=ctx.shift_dtype is not None, num_warps=warps_of(block),
                )  # fmt: skip
        dweight = sums[0].sum(0).to(weight.dtype) if norm else None
        dshift = sums[1].sum(0).to(ctx.shift_dtype) if norm and ctx.shift_dtype is not None else None
        dbias = sums[2].sum(0).to(ctx.bias_dtype) if bias else None
        return dx, dbias, (dresidual if ctx.adds else None), dweight, dshift, None, None


class BiasGelu(torch.autograd.Function):
    """gelu(x + bias) in its tanh form. Keeps x for the backward pass, and no sum or result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        _over_features("bias_gelu", (x, bias, y), x, x.shape[-1], BIAS=bias is not None)
        ctx.save_for_backward(x, bias)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None]:
        x, bias = ctx.saved_tensors
        dx, F = torch.empty_like(x), x.shape[-1]
        sums = torch.empty(_rows_of_sums(x, F), F, dtype=torch.float32, device=x.device)
        if x.numel() == 0:
            sums.zero_()
        dy = gradients[0].contiguous()
        _over_features("bias_gelu_backward", (dy, x, bias, dx, sums), x, F, BIAS=bias is not None)
        return dx, None if bias is None else sums.sum(0).to(bias.dtype)


class SwiGLU(torch.autograd.Function):
    """silu(gate) * rest of their concatenation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        _over_features("swiglu", (x, y), y, y.shape[-1])
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        dx, dy = torch.empty_like(x), gradients[0].contiguous()
        _over_features("swiglu_backward", (dy, x, dx), dy, dy.shape[-1])
        return dx


class Rotary(torch.autograd.Function):
    """(q, k, v) of stacked queries, keys and values, with q and k rotated. See `rotary`."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, groups: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        T, B = qkv.shape[:2]
        half = cos.shape[-1]
        if qkv.numel():
            with current(qkv.device):
                _kernels().rotary[(T * B, -(-(heads + groups) // heads_of_program(half)))](
                    qkv, cos, sin, B, qkv.shape[-1], heads + groups, half,
                    HEADS=heads_of_program(half), BLOCK=block_of_half(half), num_warps=ACTIVATION_WARPS,
                )  # fmt: skip
        torch.autograd.graph.increment_version(qkv)
        ctx.save_for_backward(cos, sin)
        ctx.heads, ctx.groups = heads, groups
        ctx.set_materialize_grads(True)
        q, k, v = qkv.unflatten(-1, (-1, 2 * half)).split((heads, groups, groups), dim=2)
        return q, k, v

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        cos, sin = ctx.saved_tensors
        half = cos.shape[-1]
        parts = [part if part.stride(-1) == 1 else part.contiguous() for part in gradients]
        T, B = parts[0].shape[:2]
        heads = ctx.heads + 2 * ctx.groups
        dqkv = parts[0].new_empty(T, B, heads * 2 * half)
        if dqkv.numel():
            with current(dqkv.device):
                _kernels().rotary_backward[(T * B, -(-heads // heads_of_program(half)))](
                    *parts, dqkv, cos, sin, B, ctx.heads, ctx.groups, half,
                    *(stride for part in parts for stride in part.stride()[:3]),
                    HEADS=heads_of_program(half), BLOCK=block_of_half(half), num_warps=ACTIVATION_WARPS,
                )  # fmt: skip
        return dqkv, None, None, None, None


def block_of_half(half: int) -> int:
    """Half of a head's features, rounded up to a power of two."""
    return max(16, 1 << (half - 1).bit_length())


def heads_of_program(half: int) -> int:
    """Heads per program of rotary positions, a power of two."""
    return max(1, ROTARY_FEATURES // (2 * block_of_half(half)))


def _rows_of_sums(x: Tensor, features: int) -> int:
    """Programs along the rows of an activation function."""
    return _programs(x.device, x.numel() // max(features, 1), ACTIVATION_PROGRAMS, -(-features // FEATURES))


def _over_features(kernel: str, tensors: tuple[Tensor | None, ...], like: Tensor, features: int, **flags: bool) -> None:
    """Launch a kernel whose programs have FEATURES features of some rows each."""
    if like.numel() == 0:
        return
    with current(like.device):
        getattr(_kernels(), kernel)[(-(-features // FEATURES), _rows_of_sums(like, features))](
            *tensors, like.numel() // features, features, BLOCK=FEATURES, **flags, num_warps=ACTIVATION_WARPS
        )


def add_norm(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor | None,
    shift: Tensor | None,
    eps: float,
    dropout: Dropout | None = None,
) -> tuple[Tensor, Tensor]:
    """(h, y): h = residual + dropout(x + bias), and its layer norm y (RMS norm without ``shift``), both [..., D].

    Without ``residual``, h is x itself; its gradient, that of the residual branch, is added in the norm's backward
    kernel. Without ``weight``, there is no norm and y is h. h is rounded once, to the dtype of x; y is computed from
    the rounded h.
    """
    h, y = AddNorm.apply(x, bias, residual, weight, shift, eps, dropout)
    return h, h if y is None else y


def bias_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """gelu(x + bias), [..., F], in its tanh form, computed in float32."""
    y: Tensor = BiasGelu.apply(x, bias)
    return y


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * rest, [..., F], of their concatenation x [..., 2 F], computed in float32."""
    y: Tensor = SwiGLU.apply(x)
    return y


def rotary(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [T, B, heads, c], keys and values [T, B, groups, c], which qkv [T, B, (heads + 2 groups) c] stacks.

    The pairs (i, i + c / 2) of queries and keys at position t are rotated by the angles of ``cos`` and ``sin``, float32
    [T, c / 2], in float32. The rotation is made in place; the results are views of a contiguous ``qkv``.
    """
    q, k, v = Rotary.apply(qkv.contiguous(), cos.contiguous(), sin.contiguous(), heads, groups)
    return q, k, v


MAX_ERROR = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest relative error of the trial, in the Frobenius norm."""


def trial(device: torch.device) -> str | None:
    """Why the kernels fail on a device; None if they give torch's results there. Compiling takes some seconds."""
    try:
        errors = {
            f"{name}, {dtype}": _error(own, plain, device, dtype) / most
            for dtype, most in MAX_ERROR.items()
            for name, (own, plain) in _pairs().items()
        }
    except Exception as error:  # of Triton, its compiler or the driver: the kernels are not used
        return f"a trial fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    wrong = [name for name, error in errors.items() if not error < 1]
    return f"a trial is wrong: {'; '.join(wrong)}" if wrong else None


def _pairs() -> dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]]:
    """(kernel, torch) by name; each is a function of x [T, 2 D] and a vector [2 D]."""
    functional = torch.nn.functional

    def layer_norm(x: Tensor, v: Tensor) -> Tensor:
        return sum(add_norm(x, v, x * x, v, v, 1e-5), x)

    def plain_layer_norm(x: Tensor, v: Tensor) -> Tensor:
        h = x * x + (x + v)
        return x + h + functional.layer_norm(h, v.shape, v, v, 1e-5)

    def rms_norm(x: Tensor, v: Tensor) -> Tensor:
        return sum(add_norm(x, None, None, v, None, 1e-5), x)

    def plain_rms_norm(x: Tensor, v: Tensor) -> Tensor:
        return x + x + functional.rms_norm(x, v.shape, v, 1e-5)

    def plain_gelu(x: Tensor, v: Tensor) -> Tensor:
        return functional.gelu(x + v, approximate="tanh")

    def plain_swiglu(x: Tensor, v: Tensor) -> Tensor:
        gate, rest = (x * v).chunk(2, dim=-1)
        return functional.silu(gate) * rest

    def turned(x: Tensor, v: Tensor) -> Tensor:
        angles = v.detach().float()[:25].repeat(x.shape[0], 1)
        return torch.cat([part.flatten(2) for part in rotary((x * v)[:, None], angles.cos(), angles.sin(), 2, 1)], -1)

    def plain_turned(x: Tensor, v: Tensor) -> Tensor:
        q_and_k, rest = (x * v)[:, None].split((150, 50), dim=-1)
        first, second = q_and_k.unflatten(-1, (3, 2, 25)).unbind(-2)
        cos, sin = v.detach()[:25].cos(), v.detach()[:25].sin()
        rotated = torch.stack([first * cos - second * sin, second * cos + first * sin], -2)
        return torch.cat([rotated.flatten(2), rest], -1)

    return {
        "layer norm": (layer_norm, plain_layer_norm),
        "RMS norm": (rms_norm, plain_rms_norm),
        "gelu": (bias_gelu, plain_gelu),
        "swiglu": (lambda x, v: swiglu(x * v), plain_swiglu),
        "rotary positions": (turned, plain_turned),
    }


def _error(own: Callable[..., Tensor], plain: Callable[..., Tensor], device: torch.device, dtype: torch.dtype) -> float:
    """The largest relative error of the result and of both gradients, against float32 with the same inputs."""
    generator = torch.Generator(device).manual_seed(0)
    rounded = [torch.randn(*shape, generator=generator, device=device).to(dtype) for shape in ((37, 200), (200,))]
    found = []
    for function, inputs in ((own, rounded), (plain, [tensor.float() for tensor in rounded])):
        x, v = (tensor.requires_grad_() for tensor in inputs)
        y = function(x, v)
        found.append((y.detach(), *torch.autograd.grad(y.float().square().sum(), (x, v))))
    return max(float((a.float() - b).norm() / b.norm()) for a, b in zip(*found, strict=True))
