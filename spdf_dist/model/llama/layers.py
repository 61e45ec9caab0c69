"""Options and modules of megatron-core's GPTModel for Llama."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from spdf_kernels.triton import layers as fused
from torch import Tensor

from spdf_dist.config.schema import ModelConfig
from spdf_dist.model.llama.rotary import inverse_frequencies
from spdf_dist.parallel.megatron_core import RotaryEmbedding


class Rotary(RotaryEmbedding):
    """megatron-core's rotary positions with Llama 3's scaling.

    megatron-core would move the frequencies to ``torch.cuda.current_device()``, even without a GPU. Here they follow
    the word embedding.
    """

    def __init__(self, model: ModelConfig, word_embedding: torch.nn.Module) -> None:
        super().__init__(kv_channels=model.head_size, rotary_percent=1.0, use_cpu_initialization=True)
        self.inv_freq = inverse_frequencies(model)
        self.follows = (word_embedding,)  # in a tuple, so that it does not become a submodule

    def get_emb(self, max_seq_len: int, offset: int = 0) -> Tensor:
        """The angle of each feature at each position, fp32 [T, 1, 1, c], on the device of the word embedding."""
        self.inv_freq = self.inv_freq.to(next(self.follows[0].parameters()).device)
        angles = self.get_freqs_non_repeated(max_seq_len, offset)
        return torch.cat((angles, angles), dim=-1)[:, None, None, :]


def swiglu(hidden: Tensor) -> Tensor:
    """silu(gate) * input, [..., f], of their concatenation ``hidden`` [..., 2 f].

    megatron-core's own gated linear unit adds an offset of 0 to the second half, and therefore keeps a copy of it.
    """
    gate, rest = hidden.chunk(2, dim=-1)
    return F.silu(gate) * rest


def fused_activation(hidden: Tensor, bias: None) -> Tensor:
    """`swiglu` on a GPU. The family's linears have no bias."""
    return fused.swiglu(hidden)


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
    """Replace the rotary positions that GPTModel has created."""
    gpt.rotary_pos_emb = Rotary(model, gpt.embedding.word_embeddings)
