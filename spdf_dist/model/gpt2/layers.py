"""GPT-2's choices in megatron-core's GPTModel."""

from __future__ import annotations

import functools
from typing import Any

import torch.nn.functional as F

from spdf_dist.config.schema import ModelConfig


def transformer_options(model: ModelConfig) -> dict[str, Any]:
    """Options of megatron-core's TransformerConfig. The GELU is the tanh approximation, `gelu_new`."""
    return {"activation_func": functools.partial(F.gelu, approximate="tanh")}


def gpt_options(model: ModelConfig) -> dict[str, Any]:
    """Options of megatron-core's GPTModel."""
    return {"position_embedding_type": "learned_absolute"}


def finish(gpt: Any, model: ModelConfig) -> None:
    """Change the built model, where an option does not say it."""
