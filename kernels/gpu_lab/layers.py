"""The parts of a layer outside its products: fused kernels against torch, forward and backward."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from spdf_kernels.triton import layers as fused
from torch import Tensor

from gpu_lab.cases import Bench, relative_error
from gpu_lab.record import Record

MAX_ERROR = 2e-2
"""Largest relative error, in the Frobenius norm, of bfloat16 results and gradients against torch in float32."""


class Pair(NamedTuple):
    """A fused kernel and torch's operations for the same function of (x, residual, vector)."""

    own: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    width: int
    passes: int
    """Passes of the fused kernels over [T, width], forward and backward."""


def pairs(hidden: int) -> dict[str, Pair]:
    """The functions of a layer of width ``hidden``."""
    return {
        "bias, residual, layer norm": Pair(
            lambda x, r, v: sum(fused.add_norm(x, v, r, v, v, 1e-5)),  # type: ignore[arg-type, return-value]
            lambda x, r, v: (h := r + (x + v)) + F.layer_norm(h, v.shape, v, v, 1e-5),
            hidden,
            8,
        ),
        "residual, RMS norm": Pair(
            lambda x, r, v: sum(fused.add_norm(x, None, r, v, None, 1e-5)),  # type: ignore[arg-type, return-value]
            lambda x, r, v: (h := r + x) + F.rms_norm(h, v.shape, v, 1e-5),
            hidden,
            8,
        ),
        "bias, GELU": Pair(
            lambda x, r, v: fused.bias_gelu(x, v),
            lambda x, r, v: F.gelu(x + v, approximate="tanh"),
            4 * hidden,
            5,
        ),
        "SwiGLU": Pair(
            lambda x, r, v: fused.swiglu(x),
            lambda x, r, v: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
            4 * hidden,
            4,
        ),
    }


def elementwise(bench: Bench, record: Record, model: str, hidden: int) -> None:
    """Check and time each function, forward and backward together."""
    for name, pair in pairs(hidden).items():
        if record.is_over(f"{model} {name}"):
            continue
        fields = {"model": model, "function": name}
        record.attempt("elementwise", functools.partial(compare, bench, record, pair, fields), **fields)


def compare(bench: Bench, record: Record, pair: Pair, fields: dict[str, str]) -> None:
    """One line: the error, the times, and the memory rate of the fused kernels."""
    operands = (
        bench.random(bench.tokens, pair.width),
        bench.random(bench.tokens, pair.width),
        bench.random(pair.width),
    )
    inputs = [tensor.requires_grad_() for tensor in operands]
    gradient = bench.random(*pair.own(*inputs).shape)

    def both(function: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor | None]:
        y = function(*given)
        return [y.detach(), *torch.autograd.grad(y, given, gradient.to(y.dtype), allow_unused=True)]

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new tensors with NaN
    try:
        wide = [tensor.detach().float().requires_grad_() for tensor in inputs]
        results = zip(both(pair.own, inputs), both(pair.plain, wide), strict=True)
        error = max(relative_error(a, b) for a, b in results if a is not None and b is not None)
    finally:
        torch.use_deterministic_algorithms(before)
    assert error < MAX_ERROR, f"relative error {error:.1e}"
    del wide, results
    ms, plain_ms = (bench.milliseconds(functools.partial(both, f, inputs), 60) for f in (pair.own, pair.plain))
    moved = pair.passes * 2 * bench.tokens * pair.width
    record.say(
        "elementwise", **fields, ms=ms, torch_ms=plain_ms, times_torch=plain_ms / ms, tb_s=moved / ms / 1e9,
        relative_error=error,
    )  # fmt: skip
