"""The modules that megatron-core's transformer layer is made of here: norm, attention, MLP.

Shapes: T tokens, B sequences, D hidden size, H attention heads of this rank, K head size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spdf_dist.parallel.linear import ParallelLinear

LAYER_NORM_EPSILON = 1e-5


class LayerNorm(nn.LayerNorm):
    """torch's layer norm behind the constructor that megatron-core calls."""

    def __init__(self, config: Any, hidden_size: int, eps: float = LAYER_NORM_EPSILON, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)


class SelfAttention(nn.Module):
    """Causal self-attention through torch's fused kernel, heads divided over the tensor ranks."""

    def __init__(
        self,
        config: Any,
        layer_number: int,
        *,
        qkv: dict[int, ParallelLinear],
        projection: dict[int, ParallelLinear],
        tensor_rank: int,
        tensor_size: int,
        **_: Any,
    ) -> None:
        super().__init__()
        self.heads = config.num_attention_heads // tensor_size
        self.dropout = config.attention_dropout
        self.tensor_rank = tensor_rank
        self.qkv = qkv[layer_number - 1]
        self.projection = projection[layer_number - 1]

    def forward(self, x_TBD: Tensor, attention_mask: Tensor | None = None, **_: Any) -> tuple[Tensor, Tensor | None]:
        """Attention over [T, B, D]; the mask is causal alone. Returns the output and the bias still to add."""
        qkv, _unused = self.qkv(x_TBD)
        T, B, width = qkv.shape
        head_size = width // (3 * self.heads)
        q_BHTK, k_BHTK, v_BHTK = (
            part.reshape(T, B, self.heads, head_size).permute(1, 2, 0, 3) for part in qkv.chunk(3, dim=-1)
        )
        if self.training and self.dropout > 0:
            # Heads differ between tensor ranks, so their dropout must too; drawing the seed and restoring the stream
            # keeps the ranks' common stream, which drops activations that all of them hold, in step.
            seed = int(torch.randint(2**62, ()).item()) + self.tensor_rank
            with torch.random.fork_rng(devices=[x_TBD.device] if x_TBD.is_cuda else []):
                torch.manual_seed(seed)
                y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True, dropout_p=self.dropout)
        else:
            y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        output: tuple[Tensor, Tensor | None] = self.projection(y_BHTK.permute(2, 0, 1, 3).reshape(T, B, width // 3))
        return output


class MLP(nn.Module):
    """W_O gelu(W_I x), with the tanh approximation of GPT-2 (Hugging Face's `gelu_new`)."""

    def __init__(self, config: Any, *, expand: dict[int, ParallelLinear], contract: dict[int, ParallelLinear]) -> None:
        super().__init__()
        self._by_layer = (expand, contract)

    def set_layer_number(self, layer_number: int) -> None:
        """Called by megatron-core's layer, which numbers from 1."""
        expand, contract = self._by_layer
        del self._by_layer
        self.expand = expand[layer_number - 1]
        self.contract = contract[layer_number - 1]

    def forward(self, x_TBD: Tensor, **_: Any) -> tuple[Tensor, Tensor | None]:
        """[T, B, D] to [T, B, D], and the bias still to add."""
        hidden, _unused = self.expand(x_TBD)
        output: tuple[Tensor, Tensor | None] = self.contract(F.gelu(hidden, approximate="tanh"))
        return output
