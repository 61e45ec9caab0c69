"""The layer on a GPU: the parts outside its products run in fused kernels (spdf_kernels.triton.layers).

On CPUs, and on GPUs where the kernels do not run, the layer is megatron-core's (layers.py).
"""

from __future__ import annotations

from typing import Any

import torch
from spdf_kernels.triton.layers import Dropout, add_norm
from torch import Tensor

from spdf_dist.parallel.sequence import norm_parameters

OF_ATTENTION = (
    "attention_mask",
    "inference_context",
    "rotary_pos_emb",
    "rotary_pos_cos",
    "rotary_pos_sin",
    "rotary_pos_cos_sin",
    "attention_bias",
    "packed_seq_params",
    "sequence_len_offset",
)
"""Arguments of megatron-core's layer that it passes to its attention."""


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
    y, bias = layer.self_attention(normal, **{name: options[name] for name in OF_ATTENTION if name in options})
    parameters = norm_parameters(layer.pre_mlp_layernorm)
    residual, normal = add_norm(y, bias, residual, *parameters, drawn_dropout(layer))
    y, bias = layer.mlp.linear_fc2(layer.activation(*layer.mlp.linear_fc1(normal, bias_apart=True)))
    return add_norm(y, bias, residual, None, None, 0.0, drawn_dropout(layer))[0], context
