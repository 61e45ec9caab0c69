"""Sequence parallelism: outside the linears, each tensor rank holds a share of a sequence's tokens.

The tensor ranks gather the tokens before a column-parallel linear, and reduce-scatter the sums after a row-parallel
one. Norms, residual branches and their activations are divided. Their parameters are replicated, so the gradients that
the ranks compute from their own tokens are summed. Shapes: T tokens of this rank, B sequences, D hidden size. Source:
Korthikanti et al. (2022), section 4.2.2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spdf_dist.parallel.megatron_core import copy_to_tensor_model_parallel_region, scatter_to_sequence_parallel_region


def summed_gradient(parameter: Tensor) -> Tensor:
    """The identity on a replicated parameter. Its backward pass sums the gradient over the tensor ranks.

    It is part of autograd, so that every ZeRO stage reduces the sum.
    """
    result: Tensor = copy_to_tensor_model_parallel_region(parameter)
    return result


class ScatteredLayerNorm(nn.LayerNorm):
    """A layer norm over this rank's tokens."""

    def forward(self, x_TBD: Tensor) -> Tensor:
        """Normalise [T, B, D] over D."""
        weight, bias = summed_gradient(self.weight), summed_gradient(self.bias)
        return F.layer_norm(x_TBD, self.normalized_shape, weight, bias, self.eps)


class ScatteredRMSNorm(nn.RMSNorm):
    """An RMS norm over this rank's tokens."""

    def forward(self, x_TBD: Tensor) -> Tensor:
        """Normalise [T, B, D] over D."""
        return F.rms_norm(x_TBD, self.normalized_shape, summed_gradient(self.weight), self.eps)


class ScatteredNorm:
    """Creates the norm of a TransformerConfig. megatron-core's own wrapper rejects sequence parallelism."""

    def __new__(cls, config: Any, hidden_size: int, eps: float) -> nn.Module:  # type: ignore[misc]
        kind = ScatteredRMSNorm if config.normalization == "RMSNorm" else ScatteredLayerNorm
        return kind(hidden_size, eps=eps)


def norm_parameters(norm: nn.Module) -> tuple[Tensor, Tensor | None, float]:
    """(weight, bias, eps) of a norm, for a kernel that replaces its forward pass. An RMS norm has no bias."""
    weight: Tensor = norm.get_parameter("weight")
    bias: Tensor | None = getattr(norm, "bias", None)
    if isinstance(norm, ScatteredLayerNorm | ScatteredRMSNorm):
        weight, bias = summed_gradient(weight), None if bias is None else summed_gradient(bias)
    return weight, bias, float(norm.eps)  # type: ignore[arg-type]


def scatter_inputs(decoder: nn.Module, device: torch.device) -> None:
    """Make the decoder divide its input of all tokens, which includes positions, among the tensor ranks."""
    if device.type == "cpu":
        # megatron-core's mappings allocate on the current CUDA device, even if there is none.
        torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment, return-value]

    def scatter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        whole = kwargs["hidden_states"]
        return args, kwargs | {"hidden_states": scatter_to_sequence_parallel_region(whole)}

    decoder.register_forward_pre_hook(scatter, with_kwargs=True)
