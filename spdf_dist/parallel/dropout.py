"""Random streams of dropout under tensor parallelism.

All tensor ranks seed torch's generator alike before each micro-batch. Activations that all ranks hold are dropped from
this common stream, so the ranks agree. Activations that a rank holds alone (its attention heads and, with sequence
parallelism, its tokens) are dropped from a stream of the rank. Otherwise the ranks would drop the same places of
different activations. megatron-core does the same with its tracker of CUDA generators, which does not work on a CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from spdf_dist.parallel.megatron_core import bias_dropout_add_unfused


@contextlib.contextmanager
def own_stream(tensor_rank: int, device: torch.device) -> Iterator[None]:
    """A context in which torch's generators follow a stream of this tensor rank; then the common stream continues.

    Its seed is one draw from the common stream plus the rank. Activation checkpointing restores the common stream
    before it recomputes a layer, so the recomputed layer drops the same activations.
    """
    seed = int(torch.randint(2**62, ()).item()) + tensor_rank
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def scattered_bias_dropout_add(tensor_rank: int) -> Callable[[bool, bool], Callable[..., Tensor]]:
    """megatron-core's ``get_bias_dropout_add`` for residual branches of which each tensor rank holds its own tokens."""

    def build(training: bool, _fused: bool) -> Callable[..., Tensor]:
        add = bias_dropout_add_unfused(training)

        def bias_dropout_add(x_with_bias: Any, residual: Tensor, dropout: float) -> Tensor:
            if not training or dropout == 0:
                return add(x_with_bias, residual, dropout)
            with own_stream(tensor_rank, residual.device):
                return add(x_with_bias, residual, dropout)

        return bias_dropout_add

    return build
