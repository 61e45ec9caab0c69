"""The layer on a GPU: the parts outside its products run in fused kernels (spdf_kernels.triton.layers).

On CPUs, and on GPUs where the kernels do not run, the layer is megatron-core's (layers.py).
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from spdf_kernels.triton.layers import Dropout, add_norm, unusable
from torch import Tensor, nn

from spdf_dist.parallel.sequence import norm_parameters

OF_ATTENTION = (
    "attention_mask",
    "inference_context",
    "rotary_pos_cos",
    "rotary_pos_sin",
    "rotary_pos_cos_sin",
    "attention_bias",
    "packed_seq_params",
    "sequence_len_offset",
)
"""Arguments of megatron-core's layer that it passes to its attention, without ``rotary_pos_emb``."""


@functools.lru_cache(maxsize=4)
def cos_and_sin(angles_T11c: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine, fp32 [T, c / 2], of megatron-core's angles [T, 1, 1, c], which hold each angle twice.

    megatron-core keeps the tensor of a sequence length, which is the key here.
    """
    angles_Tc2 = angles_T11c[:, 0, 0, : angles_T11c.shape[-1] // 2].float()
    return angles_Tc2.cos(), angles_Tc2.sin()


def fuse_norm(norm: nn.Module) -> None:
    """Make a norm use the fused kernel where it runs."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if unusable(x) is not None:
            plain: Tensor = type(self).forward(self, x)
            return plain
        return add_norm(x, None, None, *norm_parameters(self))[1]

    norm.forward = types.MethodType(forward, norm)


def drawn_dropout(layer: Any) -> Dropout | None:
    """The dropout of the layer's next residual branch; None if nothing is dropped.

    The seed is from the CPU's stream, which is the same on all tensor ranks and is restored for recomputation. Drawing
    it does not wait for the GPU. With sequence parallelism, each tensor rank adds its number, because it holds other
    tokens (see parallel/dropout.py).
    """
    if not layer.training or layer.hidden_dropout == 0:
        return None
    attention = layer.self_attention
    own = attention.core_attention.tensor_rank if attention.linear_proj.sequence else 0
    return Dropout(layer.hidden_dropout, int(torch.randint(2**62, ()).item()) + own)


def fused_layer(layer: Any, hidden_states: Tensor, context: Tensor | None = None, **options: Any) -> Any:
    """(output [T, B, D], ``context``) of a layer (layers.py) with attention and MLP, each after a norm."""
    residual, normal = add_norm(hidden_states, None, None, *norm_parameters(layer.input_layernorm))
    attention, angles = layer.self_attention, options.get("rotary_pos_emb")
    attention.rotation = None if angles is None else cos_and_sin(angles)
    y, bias = attention(normal, **{name: options[name] for name in OF_ATTENTION if name in options})
    attention.rotation = None
    parameters = norm_parameters(layer.pre_mlp_layernorm)
    residual, normal = add_norm(y, bias, residual, *parameters, drawn_dropout(layer))
    y, bias = layer.mlp.linear_fc2(layer.activation(*layer.mlp.linear_fc1(normal, bias_apart=True)))
    return add_norm(y, bias, residual, None, None, 0.0, drawn_dropout(layer))[0], context
