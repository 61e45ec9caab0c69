"""Chooses the faster execution of a layer by a short interleaved measurement against the best dense product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch

from spdf_kernels.backends import backend_for
from spdf_kernels.dense import dense_linear
from spdf_kernels.linear import sparse_linear
from spdf_kernels.pairs import clock, median_and_bound, timed, timed_by_events
from spdf_kernels.pattern import SparsityPattern

PAIRS = 15
MIN_MEDIAN = 1.0
MIN_BOUND = 0.97
CRITERION = (
    f"compressed where {PAIRS} interleaved pairs give dense time / own time a median of at least {MIN_MEDIAN:.2f} "
    f"and a lower bound (95%) of at least {MIN_BOUND:.2f}, else masked"
)
MAX_TOKENS, MIN_TOKENS = 2048, 512
MAX_FLOPS = 1e10  # of a dense forward and backward; more FLOPs do not change the ratio


class Comparison(NamedTuple):
    """An execution and its measurement. Without a measurement `pairs` is 0, and the speed-up and its bound are None."""

    execution: Literal["masked", "compressed"]
    reason: str
    speedup: float | None = None  # median of dense time / own time, forward and backward
    speedup_lower: float | None = None  # its lower confidence bound, 95%
    pairs: int = 0
    tokens: int = 0  # of a measured product
    threads: int = 0


_known: dict[tuple[object, ...], Comparison] = {}


def choose(
    pattern: SparsityPattern, tokens: int, dtype: torch.dtype = torch.float32
) -> Literal["masked", "compressed"]:
    """The execution of `compare`."""
    return compare(pattern, tokens, dtype).execution


def compare(pattern: SparsityPattern, tokens: int, dtype: torch.dtype = torch.float32) -> Comparison:
    """The faster execution of forward and backward over `tokens` tokens.

    "compressed" runs `sparse_linear`, "masked" the dense product with the mask on its gradient. "compressed" is chosen
    only if the measurement shows that it is not slower (`CRITERION`). A back end that skips no work gives "masked".

    Layers with the same shape, density (to 1%), tokens, dtype, threads, back end and device are measured once. On CUDA
    the clock is a pair of events, and all `tokens` are used.
    """
    backend = backend_for(pattern, dtype)
    if pattern.nnz == 0:
        return Comparison("compressed", "nothing is kept: there is no work")
    if not backend.skips_work:
        return Comparison("masked", f"the back end {backend.name} multiplies as much as dense does")
    if tokens < 1:
        return Comparison("masked", "no tokens, nothing to measure")
    threads = torch.get_num_threads()
    on_gpu = pattern.device.type == "cuda"
    tokens = tokens if on_gpu else min(tokens, measured_tokens(pattern.shape))
    key = (pattern.shape, round(pattern.density, 2), tokens, dtype, threads, backend.name, pattern.device)
    if key not in _known:
        dense, sparse = products(pattern, tokens, dtype)
        seconds = timed_by_events if on_gpu else timed(clock(threads))
        _known[key] = judge(paired_ratios(dense, sparse, seconds), tokens, threads)
    return _known[key]


def measured_tokens(shape: tuple[int, int]) -> int:
    """The number of tokens of a measurement at this shape [out, in]; more tokens do not change the ratio."""
    return int(min(MAX_TOKENS, max(MIN_TOKENS, MAX_FLOPS / (6 * shape[0] * shape[1]))))


def judge(ratios: list[float], tokens: int, threads: int) -> Comparison:
    """The execution by `CRITERION` for measured ratios of dense time / sparse time."""
    median, bound = median_and_bound(ratios)
    execution: Literal["masked", "compressed"] = "masked"
    if median >= MIN_MEDIAN and bound >= MIN_BOUND:
        execution = "compressed"
    reason = f"{median:.2f}x dense (>= {bound:.2f})"
    return Comparison(execution, reason, median, bound, len(ratios), tokens, threads)


def paired_ratios(
    dense: Callable[[], None], sparse: Callable[[], None], seconds: Callable[[Callable[[], None]], float]
) -> list[float]:
    """Time of `dense` / time of `sparse` per pair, in alternating order; `seconds` runs and times one."""
    dense()
    sparse()
    ratios = []
    for number in range(PAIRS):
        taken = {}
        for work in (dense, sparse) if number % 2 else (sparse, dense):
            taken[work] = seconds(work)
        ratios.append(taken[dense] / max(taken[sparse], 1e-9))
    return ratios


def products(
    pattern: SparsityPattern, tokens: int, dtype: torch.dtype
) -> tuple[Callable[[], None], Callable[[], None]]:
    """(dense, sparse): functions that run forward and backward of a layer with this pattern through autograd."""
    out_features, in_features = pattern.shape
    if pattern.device.type == "cuda":  # a GPU multiplies constants faster than random data
        x, dy, values = (
            torch.randn(shape, dtype=dtype, device=pattern.device)
            for shape in ((tokens, in_features), (tokens, out_features), (pattern.nnz,))
        )
        x.requires_grad_()
        values.requires_grad_()
    else:
        x = torch.ones(tokens, in_features, dtype=dtype, requires_grad=True)
        dy = torch.ones(tokens, out_features, dtype=dtype)
        values = torch.full((pattern.nnz,), 0.01, dtype=dtype, requires_grad=True)
    weight = pattern.to_dense(values.detach()).requires_grad_()

    @torch.enable_grad()
    def dense() -> None:
        torch.autograd.grad(dense_linear(x, weight), (x, weight), dy)

    @torch.enable_grad()
    def sparse() -> None:
        torch.autograd.grad(sparse_linear(x, values, pattern), (x, values), dy)

    return dense, sparse
