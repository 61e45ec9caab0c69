"""GPT-2 for inference from dense global weights: the parts of which ``spdf_dist.evaluation.decoder`` consists.

Shapes: N inputs, T tokens, V vocabulary size, h heads, c head size, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spdf_dist.config.schema import ModelConfig

Affine = tuple[Tensor, Tensor]
"""Weight and bias of a linear or a norm."""


@dataclass
class Layer:
    """The weights of one layer, with Q, K and V stacked."""

    norm_1: Affine
    qkv: Affine
    projection: Affine
    norm_2: Affine
    expand: Affine
    contract: Affine


class InferenceModel:
    """The parts of a forward pass. ``get`` returns a dense global tensor by name."""

    def __init__(self, model: ModelConfig, get: Callable[[str], Tensor]) -> None:
        self.heads = model.num_attention_heads
        self.norm_eps = model.norm_eps
        self.wte_Vd = get("embedding.word")
        self.positions_Td = get("embedding.position")
        self.norm = get("ln_f.weight"), get("ln_f.bias")
        self.layers = []
        for i in range(model.num_layers):
            at = f"layers.{i}."
            self.layers.append(
                Layer(
                    norm_1=(get(f"{at}ln_1.weight"), get(f"{at}ln_1.bias")),
                    qkv=(
                        torch.cat([get(f"{at}W_{x}") for x in "QKV"]),
                        torch.cat([get(f"{at}b_{x}") for x in "QKV"]),
                    ),
                    projection=(get(f"{at}W_D"), get(f"{at}b_D")),
                    norm_2=(get(f"{at}ln_2.weight"), get(f"{at}ln_2.bias")),
                    expand=(get(f"{at}W_I"), get(f"{at}b_I")),
                    contract=(get(f"{at}W_O"), get(f"{at}b_O")),
                )
            )

    def embed(self, tokens_NT: Tensor, positions: Tensor) -> Tensor:
        """The inputs of the first layer, [N, T, d]. ``positions`` are [T], or [N, 1]: one per input."""
        return self.wte_Vd[tokens_NT] + self.positions_Td[positions]

    def attention_inputs(self, layer: Layer, x_NTd: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [N, h, T, c]."""
        qkv = F.linear(self._normalize(x_NTd, layer.norm_1), *layer.qkv)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def finish(self, layer: Layer, x_NTd: Tensor, attended_NTd: Tensor) -> Tensor:
        """The layer's output [N, T, d], from its input and the concatenated outputs of the heads."""
        x_NTd = x_NTd + F.linear(attended_NTd, *layer.projection)
        hidden = F.gelu(F.linear(self._normalize(x_NTd, layer.norm_2), *layer.expand), approximate="tanh")
        return x_NTd + F.linear(hidden, *layer.contract)

    def logits(self, x: Tensor) -> Tensor:
        """The logits [..., V], fp32, of hidden states [..., d]."""
        return F.linear(self._normalize(x, self.norm), self.wte_Vd).float()

    def _normalize(self, x: Tensor, norm: Affine) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *norm, eps=self.norm_eps)
