"""Which execution of a layer is faster on this machine: a short interleaved measurement against the best dense one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Literal

import torch

from spdf_kernels.backends import backend_for
from spdf_kernels.dense import dense_linear
from spdf_kernels.linear import sparse_linear
from spdf_kernels.pattern import SparsityPattern

PAIRS = 15
MARGIN = 1.05  # a gain below this lies within the spread of the measurement
MAX_TOKENS = 2048  # more do not change the ratio, only the time that this takes
MAX_SECONDS = 2.0  # for one kind of layer; at least three pairs are measured

_chosen: dict[tuple[object, ...], Literal["masked", "compressed"]] = {}


def choose(
    pattern: SparsityPattern, tokens: int, dtype: torch.dtype = torch.float32
) -> Literal["masked", "compressed"]:
    """The faster execution of forward and backward over `tokens` tokens.

    "compressed" runs `sparse_linear`, "masked" the dense product with the mask on its gradient.

    Measured once for layers alike in shape, density (to 1%), tokens, dtype, threads and back end. Without a native back
    end, and on CUDA devices, it is "masked".
    """
    backend = backend_for(pattern)
    if backend == "torch" or tokens < 1 or pattern.nnz == 0:
        return "masked" if pattern.nnz else "compressed"
    tokens = min(tokens, MAX_TOKENS)
    key = (pattern.shape, round(pattern.density, 2), tokens, dtype, torch.get_num_threads(), backend)
    if key not in _chosen:
        _chosen[key] = "compressed" if _speedup(pattern, tokens, dtype) > MARGIN else "masked"
    return _chosen[key]


def _speedup(pattern: SparsityPattern, tokens: int, dtype: torch.dtype) -> float:
    """Median over interleaved pairs of the dense time over the sparse time, forward and backward."""
    out_features, in_features = pattern.shape
    mask = pattern.mask()
    x = torch.ones(tokens, in_features, dtype=dtype, requires_grad=True)
    dy = torch.ones(tokens, out_features, dtype=dtype)
    values = torch.full((pattern.nnz,), 0.01, dtype=dtype, requires_grad=True)
    weight = pattern.to_dense(values.detach()).requires_grad_()

    def dense() -> None:
        _, dweight = torch.autograd.grad(dense_linear(x, weight), (x, weight), dy)
        torch.where(mask, dweight, 0)

    def sparse() -> None:
        torch.autograd.grad(sparse_linear(x, values, pattern), (x, values), dy)

    with torch.enable_grad():
        dense()
        sparse()
        ratios: list[float] = []
        end = time.perf_counter() + MAX_SECONDS
        while len(ratios) < 3 or (len(ratios) < PAIRS and time.perf_counter() < end):
            ratios.append(_seconds(dense) / _seconds(sparse))
    return statistics.median(ratios)


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
