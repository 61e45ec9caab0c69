"""Builds the GPT: megatron-core's GPTModel, its layers swapped for ours through a ModuleSpec.

Shapes: T tokens, B sequences, D hidden size.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

import torch
import torch.utils.checkpoint
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from spdf_dist.config.schema import ModelConfig
from spdf_dist.model.layers import LAYER_NORM_EPSILON, MLP, LayerNorm, SelfAttention
from spdf_dist.model.loss import linear_cross_entropy
from spdf_dist.parallel.groups import Groups
from spdf_dist.parallel.layout import Piece, pieces_of
from spdf_dist.parallel.linear import LogicalLinear, ParallelLinear
from spdf_dist.sparsity.masks import BoolArray

VOCAB_MULTIPLE = 8
"""Each rank's share of the padded vocabulary is a multiple of this."""

LINEARS = {"qkv": ("W_Q", "W_K", "W_V"), "projection": ("W_D",), "expand": ("W_I",), "contract": ("W_O",)}
"""The four products of a layer and the logical weights stacked in each; the first and third divide their outputs."""

Execution = Mapping[str, str]
"""Execution of each linear, `masked` or `compressed`, by its place in LINEARS."""


class Layer(TransformerLayer):
    """megatron-core's layer, recomputed in the backward pass on request.

    torch's checkpointing replaces megatron-core's, which needs CUDA's random-number tracker.
    """

    recompute = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward = super().forward
        if self.recompute and self.training and torch.is_grad_enabled():
            return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return forward(*args, **kwargs)


class GPT(GPTModel):
    """Token ids and labels to the summed token loss."""

    label_smoothing = 0.0

    def _postprocess(self, hidden_states: Tensor, labels: Tensor, **_: Any) -> Tensor:
        """The sum of token losses of [T, B, D] hidden states and [B, T] labels, in place of megatron-core's loss."""
        hidden_ND = hidden_states.reshape(-1, hidden_states.shape[-1])
        return linear_cross_entropy(
            hidden_ND,
            self.shared_embedding_or_output_weight(),
            labels.t().reshape(-1),
            vocab_start=self.embedding.word_embeddings.vocab_start_index,
            vocab_size=self.real_vocab_size,
            group=self.groups.tensor_group if self.groups.tensor_size > 1 else None,
            label_smoothing=self.label_smoothing if self.training else 0.0,
        )

    def loss(self, tokens_BT: Tensor, labels_BT: Tensor) -> Tensor:
        """The sum of token losses, fp32; labels of -100 do not count. Smoothed in training mode alone."""
        positions = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
        total: Tensor = self(tokens_BT, positions, None, labels=labels_BT)
        return total


def padded_vocab_size(vocab_size: int, tensor_size: int) -> int:
    """The vocabulary rounded up so that every tensor rank holds the same number of rows."""
    multiple = VOCAB_MULTIPLE * tensor_size
    return -(-vocab_size // multiple) * multiple


def layer_linears(model: ModelConfig, layer: int, place: str) -> list[LogicalLinear]:
    """The logical linears of one product of a layer."""
    d, f = model.hidden_size, model.ffn
    shapes = {"W_I": (f, d), "W_O": (d, f)}
    return [
        LogicalLinear(
            f"layers.{layer}.{name}",
            f"layers.{layer}.{name.replace('W_', 'b_')}",
            *shapes.get(name, (d, d)),
        )
        for name in LINEARS[place]
    ]


def transformer_config(model: ModelConfig, tensor_size: int, dtype: torch.dtype) -> TransformerConfig:
    """megatron-core's config of the same model."""
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        ffn_hidden_size=model.ffn,
        tensor_model_parallel_size=tensor_size,
        hidden_dropout=model.dropout,
        attention_dropout=model.dropout,
        layernorm_epsilon=LAYER_NORM_EPSILON,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        use_cpu_initialization=True,
        perform_initialization=False,
        bias_dropout_fusion=False,
        gradient_accumulation_fusion=False,
        activation_func=functools.partial(nn.functional.gelu, approximate="tanh"),
    )


def build_gpt(
    model: ModelConfig,
    groups: Groups,
    *,
    masks: Mapping[str, BoolArray],
    execution: Execution,
    dtype: torch.dtype,
    activation_checkpointing: bool = False,
    label_smoothing: float = 0.0,
) -> GPT:
    """This rank's slice of the model, parameters not yet filled (see initialize.py), on the CPU.

    Every parameter carries ``pieces`` and DeepSpeed's ``tensor_model_parallel`` mark: without the mark the clipped
    gradient norm would be silently wrong.
    """
    config = transformer_config(model, groups.tensor_size, dtype)
    linears: dict[str, dict[int, ParallelLinear]] = {
        place: {
            layer: ParallelLinear(
                layer_linears(model, layer, place),
                divide="outputs" if place in ("qkv", "expand") else "inputs",
                tensor_rank=groups.tensor_rank,
                tensor_size=groups.tensor_size,
                masks=masks,
                execution=execution.get(place, "masked"),
                dtype=dtype,
            )
            for layer in range(model.num_layers)
        }
        for place in LINEARS
    }
    attention = {
        "qkv": linears["qkv"],
        "projection": linears["projection"],
        "tensor_rank": groups.tensor_rank,
        "tensor_size": groups.tensor_size,
    }
    layer_spec = ModuleSpec(
        module=Layer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=LayerNorm,
            self_attention=ModuleSpec(module=SelfAttention, params=attention),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=LayerNorm,
            mlp=ModuleSpec(module=MLP, params={"expand": linears["expand"], "contract": linears["contract"]}),
            mlp_bda=get_bias_dropout_add,
        ),
    )
    # megatron-core warns of every MLP that is not its own.
    logging.getLogger("megatron.core.transformer.transformer_layer").setLevel(logging.ERROR)
    gpt = GPT(
        config,
        TransformerBlockSubmodules(layer_specs=[layer_spec] * model.num_layers, layer_norm=LayerNorm),
        vocab_size=padded_vocab_size(model.vocab_size, groups.tensor_size),
        max_sequence_length=model.seq_length,
        share_embeddings_and_output_weights=True,
        position_embedding_type="learned_absolute",
    )
    gpt.groups = groups
    gpt.real_vocab_size = model.vocab_size
    gpt.label_smoothing = label_smoothing
    for layer in gpt.decoder.layers:
        layer.recompute = activation_checkpointing
    name_pieces(gpt, model)
    for parameter in gpt.parameters():
        parameter.tensor_model_parallel = any(piece.dim is not None for piece in pieces_of(parameter))
    return gpt.to(dtype)


def name_pieces(gpt: GPT, model: ModelConfig) -> None:
    """Give embeddings and norms their global names; the linears have them already."""
    words = gpt.embedding.word_embeddings
    start = min(words.vocab_start_index, model.vocab_size)  # a rank may hold padding alone
    stop = max(start, min(words.vocab_end_index, model.vocab_size))
    shape = (model.vocab_size, model.hidden_size)
    words.weight.pieces = (Piece("embedding.word", shape, 0, start, stop, 0, stop - start),)
    whole = {"embedding.position": gpt.embedding.position_embeddings.weight}
    norms = {"ln_f": gpt.decoder.final_layernorm}
    for index, layer in enumerate(gpt.decoder.layers):
        norms[f"layers.{index}.ln_1"] = layer.input_layernorm
        norms[f"layers.{index}.ln_2"] = layer.pre_mlp_layernorm
    for name, norm in norms.items():
        whole[f"{name}.weight"] = norm.weight
        whole[f"{name}.bias"] = norm.bias
    for name, parameter in whole.items():
        length = parameter.shape[0]
        parameter.pieces = (Piece(name, tuple(parameter.shape), None, 0, length, 0, length),)


def sparse_linears(gpt: GPT) -> list[tuple[str, ParallelLinear]]:
    """Each sparse product of the model with its name, in the order of the layers."""
    found = []
    for index, layer in enumerate(gpt.decoder.layers):
        modules = {
            "qkv": layer.self_attention.qkv,
            "projection": layer.self_attention.projection,
            "expand": layer.mlp.expand,
            "contract": layer.mlp.contract,
        }
        found += [
            (f"layers.{index}.{place}", module) for place, module in modules.items() if module.execution != "dense"
        ]
    return found
