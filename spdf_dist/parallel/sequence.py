"""Sequence parallelism: outside the linears each tensor rank holds its share of a sequence's tokens.

The tensor ranks gather the tokens before a column-parallel linear and scatter the sums after a row-parallel one. Norms,
residual branches and their activations are divided. Their parameters are on every rank, so the gradients that the ranks
compute from their own tokens are summed. Source: Korthikanti et al. (2022), section 4.2.2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from torch import Tensor, nn


def summed_gradient(parameter: Tensor) -> Tensor:
    """The parameter, whose gradient is summed over the tensor ranks: each sees its own tokens only.

    Inside autograd, so that every ZeRO stage reduces the sum.
    """
    result: Tensor = copy_to_tensor_model_parallel_region(parameter)
    return result


class ScatteredLayerNorm(nn.LayerNorm):
    """A layer norm over this rank's tokens."""

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D], of this rank's T."""
        weight, bias = summed_gradient(self.weight), summed_gradient(self.bias)
        return F.layer_norm(x_TBD, self.normalized_shape, weight, bias, self.eps)


class ScatteredRMSNorm(nn.RMSNorm):
    """An RMS norm over this rank's tokens."""

    def forward(self, x_TBD: Tensor) -> Tensor:
        """[T, B, D], of this rank's T."""
        return F.rms_norm(x_TBD, self.normalized_shape, summed_gradient(self.weight), self.eps)


class ScatteredNorm:
    """The norm of a TransformerConfig; megatron-core's wrapper of torch's norms refuses sequence parallelism."""

    def __new__(cls, config: Any, hidden_size: int, eps: float) -> nn.Module:  # type: ignore[misc]
        kind = ScatteredRMSNorm if config.normalization == "RMSNorm" else ScatteredLayerNorm
        return kind(hidden_size, eps=eps)


def scatter_inputs(decoder: nn.Module, device: torch.device) -> None:
    """Make the decoder take this rank's tokens of its [T, B, D] inputs; positions are added before, to all of them."""
    if device.type == "cpu":
        # megatron-core's mappings allocate on the current CUDA device, also where there is none.
        torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment, return-value]

    def scatter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        whole = kwargs["hidden_states"]
        return args, kwargs | {"hidden_states": scatter_to_sequence_parallel_region(whole)}

    decoder.register_forward_pre_hook(scatter, with_kwargs=True)
