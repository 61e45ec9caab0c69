"""Initial weights. Each is a function of (seed, global name, shape), so it does not depend on tensor parallelism.

The dense global weight is drawn first and masked afterwards, so that all variants of a model agree on entries that they
keep.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from spdf_dist.base.random_streams import derive_seed
from spdf_dist.config.schema import ModelConfig, SparsityConfig
from spdf_dist.model.architecture import TensorSpec, architecture_of
from spdf_dist.model.parameterization import Rule
from spdf_dist.parallel.layout import join_shards, shards_of
from spdf_dist.sparsity.assignment import sparse_weights
from spdf_dist.sparsity.masks import logical_weights


def initial_tensor(tensor: TensorSpec, seed: int) -> Tensor:
    """The dense initial value of a global tensor, fp32, with entries from N(initial_mean, initial_std^2)."""
    if tensor.initial_std == 0:
        return torch.full(tensor.shape, tensor.initial_mean)
    generator = torch.Generator().manual_seed(derive_seed("init", seed, tensor.name) >> 1)
    value = torch.randn(tensor.shape, generator=generator).mul_(tensor.initial_std)
    return value.add_(tensor.initial_mean) if tensor.initial_mean else value


@torch.no_grad()
def initialize_parameters(module: nn.Module, model: ModelConfig, sparsity: SparsityConfig, seed: int) -> None:
    """Initialise this rank's parameters in place.

    If the module has ``rules``, these set the standard deviations; otherwise the architecture's table does.
    """
    weights = sparse_weights(logical_weights(model), sparsity)
    densities = {name: weight.kept / weight.numel for name, weight in weights.items()}
    tensors = architecture_of(model).tensors
    rules: Mapping[str, Rule] = getattr(module, "rules", {})
    for parameter in module.parameters():
        contents = {}
        for shard in shards_of(parameter):
            tensor = tensors[shard.name]
            whole = initial_tensor(replace(tensor, initial_std=rules[tensor.name].std) if rules else tensor, seed)
            part = whole if shard.dim is None else whole.narrow(shard.dim, shard.start, shard.stop - shard.start)
            if shard.mask is not None:
                part = part[shard.mask]
                if sparsity.init_scale == "fan_in":
                    part = part / math.sqrt(densities[shard.name])
            contents[shard.name] = part
        join_shards(shards_of(parameter), contents, parameter)
