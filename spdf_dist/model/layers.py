"""The layer that all families share: megatron-core's layer with this project's sparse linears.

Shapes: T tokens, B sequences, h attention heads and g key and value heads of this rank, c head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from spdf_kernels.dense import is_emulated
from spdf_kernels.triton.layers import rotary, unusable
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from spdf_dist.model.fused import fused_layer
from spdf_dist.parallel.dropout import own_stream
from spdf_dist.parallel.megatron_core import (
    MLP,
    MLPSubmodules,
    ModuleSpec,
    SelfAttention,
    SelfAttentionSubmodules,
    TransformerLayer,
    TransformerLayerSubmodules,
    build_module,
)


class Layer(TransformerLayer):
    """megatron-core's layer, which is recomputed in the backward pass if ``recompute`` is set.

    It uses torch's activation checkpointing, because megatron-core's needs CUDA's random number tracker. On a GPU it
    uses fused kernels for norms, residual additions and activation functions.
    """

    recompute = False
    activation: Callable[[Tensor, Tensor | None], Tensor]
    """The activation function of (output of the first linear without its bias, bias), as a fused kernel."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward = super().forward
        if unusable(kwargs["hidden_states"]) is None:
            forward = functools.partial(fused_layer, self)
        if self.recompute and self.training and torch.is_grad_enabled():
            return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return forward(*args, **kwargs)


class StackedSelfAttention(SelfAttention):
    """megatron-core's self-attention with a parameter that stacks Q, K and V one after the other.

    megatron-core interleaves them by key and value head. Stacking keeps the values of each logical weight contiguous.
    """

    rotation: tuple[Tensor, Tensor] | None = None
    """Cosine and sine, [T, c / 2], for the fused kernel of rotary positions. None: megatron-core applies positions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The order of the parameters, which sums over them follow, should be that of the forward pass.
        self._modules["linear_proj"] = self._modules.pop("linear_proj")

    def get_query_key_value_tensors(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [T, B, h, c], keys and values [T, B, g, c] of this rank."""
        qkv, _bias = self.linear_qkv(hidden_states)
        size, heads, groups = (
            self.hidden_size_per_attention_head,
            self.num_attention_heads_per_partition,
            self.num_query_groups_per_partition,
        )
        if self.rotation is not None:
            return rotary(qkv, *self.rotation, heads, groups)
        q, k, v = (
            part.unflatten(-1, (-1, size)) for part in qkv.split((heads * size, groups * size, groups * size), dim=-1)
        )
        return q, k, v


class CausalAttention(nn.Module):
    """Causal attention with torch's fused kernels.

    megatron-core's DotProductAttention needs CUDA's random number tracker and stores all scores.
    """

    def __init__(self, *, config: Any, pg_collection: Any, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__()
        self.dropout = config.attention_dropout
        self.scale = softmax_scale
        self.grouped = config.num_query_groups != config.num_attention_heads
        self.tensor_rank = pg_collection.tp.rank()

    def forward(self, q_TBhc: Tensor, k_TBgc: Tensor, v_TBgc: Tensor, *_: Any, **__: Any) -> Tensor:
        """The attention output, [T, B, h * c]. The attention mask is always causal."""

        def attend(dropout: float) -> Tensor:
            q, k, v = (part.permute(1, 2, 0, 3) for part in (q_TBhc, k_TBgc, v_TBgc))
            dtype = q.dtype
            if is_emulated(dtype, q.device):  # torch's backward pass is many times slower then
                q, k, v = q.float(), k.float(), v.float()
            with preferred_kernels(q_TBhc.device):
                y = F.scaled_dot_product_attention(
                    q, k, v, is_causal=True, dropout_p=dropout, scale=self.scale, enable_gqa=self.grouped
                )
            return y.to(dtype)

        if self.training and self.dropout > 0:
            with own_stream(self.tensor_rank, q_TBhc.device):  # tensor ranks hold different heads
                y_BhTc = attend(self.dropout)
        else:
            y_BhTc = attend(0.0)
        return y_BhTc.permute(2, 0, 1, 3).flatten(2)


def preferred_kernels(device: torch.device) -> AbstractContextManager[None]:
    """A context that sets the order in which torch tries its attention kernels on a GPU; it does nothing on a CPU.

    On compute capability 9.0 and newer, cuDNN's kernel comes first, because torch's flash attention is made for older
    GPUs and is slower there.
    """
    if device.type != "cuda":
        return nullcontext()
    newest = torch.cuda.get_device_capability(device) >= (9, 0)
    first = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
    order = (first if newest else first[::-1]) + [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    context: AbstractContextManager[None] = sdpa_kernel(order, set_priority=True)
    return context


def pre_norm_layer(
    linear: Callable[[str], ModuleSpec], norm: type, bias_dropout_add: Callable[..., Any], ffn_hidden_size: int
) -> ModuleSpec:
    """The spec of a layer with attention and MLP, each after a norm. ``linear`` gives the spec of a linear by name.

    ``bias_dropout_add`` has the interface of megatron-core's ``get_bias_dropout_add``.
    """
    return ModuleSpec(
        module=Layer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(
                module=StackedSelfAttention,
                submodules=SelfAttentionSubmodules(
                    linear_qkv=functools.partial(build_module, linear("qkv")),
                    core_attention=CausalAttention,
                    linear_proj=linear("projection"),
                ),
            ),
            self_attn_bda=bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=ModuleSpec(
                module=MLP,
                params={"ffn_hidden_size": ffn_hidden_size},
                submodules=MLPSubmodules(linear_fc1=linear("expand"), linear_fc2=linear("contract")),
            ),
            mlp_bda=bias_dropout_add,
        ),
    )
