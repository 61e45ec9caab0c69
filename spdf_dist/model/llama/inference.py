"""Llama for inference from dense global weights: the parts of which ``spdf_dist.evaluation.decoder`` consists.

Shapes: N inputs, T tokens, V vocabulary size, h heads, g key and value heads, c head size, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spdf_dist.config.schema import ModelConfig
from spdf_dist.model.llama.rotary import inverse_frequencies, rotate


@dataclass
class Layer:
    """The weights of one layer. Q, K and V are stacked, and so are gate (W_G) and input (W_I) of the MLP."""

    norm_1: Tensor
    qkv: Tensor
    projection: Tensor
    norm_2: Tensor
    expand: Tensor
    contract: Tensor


class InferenceModel:
    """The parts of a forward pass. ``get`` returns a dense global tensor by name."""

    def __init__(self, model: ModelConfig, get: Callable[[str], Tensor]) -> None:
        self.heads, self.groups, self.head_size = model.num_attention_heads, model.key_value_heads, model.head_size
        self.norm_eps = model.norm_eps
        self.wte_Vd = get("embedding.word")
        self.head_Vd = self.wte_Vd if model.tie_embeddings else get("head.weight")
        self.norm = get("ln_f.weight")
        self.frequencies = inverse_frequencies(model).to(self.wte_Vd.device)
        self.layers = []
        for i in range(model.num_layers):
            at = f"layers.{i}."
            self.layers.append(
                Layer(
                    norm_1=get(f"{at}ln_1.weight"),
                    qkv=torch.cat([get(f"{at}W_{x}") for x in "QKV"]),
                    projection=get(f"{at}W_D"),
                    norm_2=get(f"{at}ln_2.weight"),
                    expand=torch.cat([get(f"{at}W_{x}") for x in "GI"]),
                    contract=get(f"{at}W_O"),
                )
            )

    def embed(self, tokens_NT: Tensor, positions: Tensor) -> Tensor:
        """The inputs of the first layer, [N, T, d]. ``attention_inputs`` applies the positions."""
        return self.wte_Vd[tokens_NT]

    def attention_inputs(self, layer: Layer, x_NTd: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [N, h, T, c], keys and values [N, g, T, c]. ``positions`` are [T], or [N, 1]: one per input."""
        qkv = F.linear(self._normalize(x_NTd, layer.norm_1), layer.qkv)
        q, k, v = (
            part.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for part in qkv.split([count * self.head_size for count in (self.heads, self.groups, self.groups)], dim=-1)
        )
        angles = positions.unsqueeze(-1) * self.frequencies
        if positions.dim() == 2:
            angles = angles[:, None]
        return rotate(q, angles), rotate(k, angles), v

    def finish(self, layer: Layer, x_NTd: Tensor, attended_NTd: Tensor) -> Tensor:
        """The layer's output [N, T, d], from its input and the concatenated outputs of the heads."""
        x_NTd = x_NTd + F.linear(attended_NTd, layer.projection)
        gate, hidden = F.linear(self._normalize(x_NTd, layer.norm_2), layer.expand).chunk(2, dim=-1)
        return x_NTd + F.linear(F.silu(gate) * hidden, layer.contract)

    def logits(self, x: Tensor) -> Tensor:
        """The logits [..., V], fp32, of hidden states [..., d]."""
        return F.linear(self._normalize(x, self.norm), self.head_Vd).float()

    def _normalize(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight, eps=self.norm_eps)
