"""Builds a model of any family: megatron-core's GPTModel with this project's sparse linears and loss.

Shapes: T tokens, B sequences, D hidden size.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spdf_dist.config.schema import ModelConfig
from spdf_dist.model.architecture import Architecture, architecture_of, family_module, padded_vocab_size
from spdf_dist.model.fused import fuse_norm
from spdf_dist.model.layers import pre_norm_layer
from spdf_dist.model.loss import linear_cross_entropy
from spdf_dist.model.parameterization import STANDARD, Multipliers, Parameterization, Rule
from spdf_dist.parallel.dropout import scattered_bias_dropout_add
from spdf_dist.parallel.groups import Groups
from spdf_dist.parallel.layout import TensorShard, shards_of
from spdf_dist.parallel.linear import ParallelLinear
from spdf_dist.parallel.megatron_core import (
    GPTModel,
    ModuleSpec,
    TransformerBlockSubmodules,
    TransformerConfig,
    WrappedTorchNorm,
    gather_from_sequence_parallel_region,
    get_bias_dropout_add,
)
from spdf_dist.parallel.sequence import ScatteredNorm, scatter_inputs
from spdf_dist.sparsity.masks import BoolArray

Execution = Mapping[str, str]
"""The execution, `masked` or `compressed`, of each linear of a layer, by its name (``Architecture.linears``)."""


class GPT(GPTModel):
    """A language model that returns the summed token loss of token ids and labels."""

    architecture: Architecture
    groups: Groups
    label_smoothing = 0.0
    sequence = False
    parameterization: Parameterization
    rules: dict[str, Rule]
    """The rule of each tensor, by its global name."""
    multipliers = Multipliers()

    def _postprocess(self, hidden_states: Tensor, labels: Tensor, **_: Any) -> Tensor:
        """The sum of the token losses of hidden states [T, B, D] and labels [B, T]. Replaces megatron-core's loss."""
        tied = self.architecture.model.tie_embeddings
        if self.sequence:
            hidden_states = gather_from_sequence_parallel_region(hidden_states)
        if self.multipliers.output != 1:
            hidden_states = hidden_states * self.multipliers.output
        return linear_cross_entropy(
            hidden_states.reshape(-1, hidden_states.shape[-1]),
            self.embedding.word_embeddings.weight if tied else self.output_layer.weight,
            labels.t().reshape(-1),
            vocab_start=self.embedding.word_embeddings.vocab_start_index,
            vocab_size=self.architecture.model.vocab_size,
            group=self.groups.tensor_group if self.groups.tensor_size > 1 else None,
            sum_gradient=not self.sequence,
            label_smoothing=self.label_smoothing if self.training else 0.0,
        )

    def forward(self, tokens_BT: Tensor, labels_BT: Tensor) -> Tensor:
        """The sum of the token losses, fp32. Labels equal to ``IGNORED`` do not count.

        Label smoothing applies only in training mode.
        """
        positions = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
        total: Tensor = super().forward(tokens_BT, positions, None, labels=labels_BT)
        return total


def transformer_config(model: ModelConfig, tensor_size: int, dtype: torch.dtype) -> TransformerConfig:
    """megatron-core's config for the model."""
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.key_value_heads,
        ffn_hidden_size=model.ffn,
        tensor_model_parallel_size=tensor_size,
        hidden_dropout=model.dropout,
        attention_dropout=model.dropout,
        layernorm_epsilon=model.norm_eps,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        use_cpu_initialization=True,
        perform_initialization=False,
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        gradient_accumulation_fusion=False,
        **family_module(model.family, "layers").transformer_options(model),
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
    sequence: bool = False,
    parameterization: Parameterization = STANDARD,
) -> GPT:
    """This rank's slice of the model, on the CPU, with uninitialised parameters (see initialize.py).

    Args:
        model: the architecture.
        groups: the position of this rank.
        masks: global masks of the sparse weights by name, bool [out, in].
        execution: of each linear with masks; the default is `masked`.
        dtype: of parameters and activations.
        activation_checkpointing: whether each layer is recomputed in the backward pass.
        label_smoothing: of the loss in training mode.
        sequence: whether the tensor ranks also divide the tokens outside the linears (see parallel/sequence.py).
        parameterization: sets the multipliers of the forward pass and the rules of the tensors.

    Every parameter has the attributes ``shards`` and, for DeepSpeed, ``tensor_model_parallel``. Without the latter the
    clipped gradient norm would be silently wrong.
    """
    architecture = architecture_of(model)
    family = family_module(model.family, "layers")

    norm = ScatteredNorm if sequence else WrappedTorchNorm
    bias_dropout_add = scattered_bias_dropout_add(groups.tensor_rank) if sequence else get_bias_dropout_add

    def linear(layer: int, name: str) -> ModuleSpec:
        return ModuleSpec(
            module=ParallelLinear,
            params={
                "weights": architecture.weights_of(layer, name),
                "biases": architecture.biases_of(layer, name),
                "tensor_rank": groups.tensor_rank,
                "tensor_size": groups.tensor_size,
                "masks": masks,
                "execution": execution.get(name, "masked"),
                "dtype": dtype,
                "sequence": sequence,
            },
        )

    layers = [
        pre_norm_layer(functools.partial(linear, index), norm, bias_dropout_add, model.ffn)
        for index in range(model.num_layers)
    ]
    gpt = GPT(
        transformer_config(model, groups.tensor_size, dtype),
        TransformerBlockSubmodules(layer_specs=layers, layer_norm=norm),
        vocab_size=padded_vocab_size(model.vocab_size, groups.tensor_size),
        max_sequence_length=model.seq_length,
        share_embeddings_and_output_weights=model.tie_embeddings,
        **family.gpt_options(model),
    )
    family.finish(gpt, model)
    fuse_norm(gpt.decoder.final_layernorm)
    if sequence:
        scatter_inputs(gpt.decoder, groups.device)
    gpt.sequence = sequence
    gpt.architecture = architecture
    gpt.groups = groups
    gpt.label_smoothing = label_smoothing
    gpt.parameterization = parameterization
    densities = {} if parameterization.is_standard else {name: float(masks[name].mean()) for name in masks}
    gpt.rules = parameterization.rules(architecture, densities)
    apply_multipliers(gpt, parameterization.multipliers(model))
    for layer in gpt.decoder.layers:
        layer.recompute = activation_checkpointing
        layer.activation = family.fused_activation
    name_shards(gpt)
    for parameter in gpt.parameters():
        parameter.tensor_model_parallel = any(shard.dim is not None for shard in shards_of(parameter))
    return gpt.to(dtype)


def apply_multipliers(gpt: GPT, multipliers: Multipliers) -> None:
    """Add the constant factors of a parameterization to the forward pass."""
    gpt.multipliers = multipliers
    if multipliers.embedding != 1:
        gpt.embedding.register_forward_hook(lambda _module, _inputs, output: output * multipliers.embedding)
    for layer in gpt.decoder.layers:
        if multipliers.attention is not None:
            layer.self_attention.core_attention.scale = multipliers.attention
        if multipliers.branch != 1:
            for linear in (layer.self_attention.linear_proj, layer.mlp.linear_fc2):
                linear.register_forward_hook(functools.partial(scale_branch, multipliers.branch))


def scale_branch(factor: float, _module: Any, _inputs: Any, output: tuple[Tensor, Tensor | None]) -> Any:
    """A forward hook that multiplies the output and the bias of a row-parallel linear by ``factor``."""
    y, bias = output
    return y * factor, None if bias is None else bias * factor


def name_shards(gpt: GPT) -> None:
    """Set ``shards`` of the parameters outside ``ParallelLinear``, which sets its own."""
    rank = gpt.groups.tensor_rank
    for path, (tensor, *_) in gpt.architecture.by_parameter().items():
        if tensor.stack is not None:
            continue
        parameter = gpt.get_parameter(path)
        start, stop = 0, parameter.shape[0]
        if tensor.shard_dim is not None:  # a rank may hold only vocabulary padding
            start, stop = (min(at * parameter.shape[0], tensor.shape[0]) for at in (rank, rank + 1))
        parameter.shards = (TensorShard(tensor.name, tensor.shape, tensor.shard_dim, start, stop, 0, stop - start),)


def sparse_linears(gpt: GPT) -> list[tuple[str, ParallelLinear]]:
    """Each sparse linear with its name, such as `layers.0.qkv`, in the order of the layers."""
    found = []
    for index in range(gpt.architecture.model.num_layers):
        for name in gpt.architecture.linears:
            path = gpt.architecture.weights_of(index, name)[0].parameter
            module = gpt.get_submodule(path.removesuffix(".weight"))
            if module.execution != "dense":
                found.append((f"layers.{index}.{name}", module))
    return found
