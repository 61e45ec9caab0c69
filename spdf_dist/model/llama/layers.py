"""Llama's choices in megatron-core's GPTModel."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor

from spdf_dist.config.schema import ModelConfig
from spdf_dist.model.llama.rotary import inverse_frequencies


class Rotary(RotaryEmbedding):
    """megatron-core's rotary positions, with all of Llama 3's scaling factors.

    megatron-core moves the frequencies to ``torch.cuda.current_device()``, also where there is no GPU.
    """

    def __init__(self, model: ModelConfig, word_embedding: torch.nn.Module) -> None:
        super().__init__(kv_channels=model.head_size, rotary_percent=1.0, use_cpu_initialization=True)
        self.inv_freq = inverse_frequencies(model)
        self.follows = (word_embedding,)  # in a tuple: it is not a submodule of this one

    def get_emb(self, max_seq_len: int, offset: int = 0) -> Tensor:
        """[T, 1, 1, c], fp32: the angle of each feature at each position, on the device of the word embedding."""
        self.inv_freq = self.inv_freq.to(next(self.follows[0].parameters()).device)
        angles = self.get_freqs_non_repeated(max_seq_len, offset)
        return torch.cat((angles, angles), dim=-1)[:, None, None, :]


def swiglu(hidden: Tensor) -> Tensor:
    """The activated gate times the rest, from both side by side.

    megatron-core's gated linear unit adds an offset of 0 to the second half, and so keeps a copy of it.
    """
    gate, rest = hidden.chunk(2, dim=-1)
    return F.silu(gate) * rest


def transformer_options(model: ModelConfig) -> dict[str, Any]:
    """Options of megatron-core's TransformerConfig."""
    return {
        "normalization": "RMSNorm",
        "activation_func": swiglu,
        "add_bias_linear": False,
    }


def gpt_options(model: ModelConfig) -> dict[str, Any]:
    """Options of megatron-core's GPTModel."""
    return {"position_embedding_type": "rope"}


def finish(gpt: Any, model: ModelConfig) -> None:
    """Replace the rotary positions that GPTModel made."""
    gpt.rotary_pos_emb = Rotary(model, gpt.embedding.word_embeddings)
