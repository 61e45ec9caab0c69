"""Options of megatron-core's GPTModel for GPT-2."""

from __future__ import annotations

import functools
from typing import Any

import torch.nn.functional as F
from spdf_kernels.triton.layers import bias_gelu
from torch import Tensor

from spdf_dist.config.schema import ModelConfig


def transformer_options(model: ModelConfig) -> dict[str, Any]:
    """Options of megatron-core's TransformerConfig. GELU is its tanh approximation (`gelu_new` in transformers)."""
    return {"activation_func": functools.partial(F.gelu, approximate="tanh")}


def fused_activation(x: Tensor, bias: Tensor | None) -> Tensor:
    """The same function of x + ``bias``, [..., f], on a GPU."""
    return bias_gelu(x, bias)


def gpt_options(model: ModelConfig) -> dict[str, Any]:
    """Options of megatron-core's GPTModel."""
    return {"position_embedding_type": "learned_absolute"}


def finish(gpt: Any, model: ModelConfig) -> None:
    """Change the built model where options do not suffice; GPT-2 needs no change."""
