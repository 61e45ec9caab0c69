"""GPT-2's initial weights: each a function of (seed, global name, shape), the same at any tensor parallelism.

The dense global weight is drawn first and masked after, so that all variants of a model share their kept entries.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from spdf_dist.base.random_streams import derive_seed
from spdf_dist.config.schema import ModelConfig, SparsityConfig
from spdf_dist.parallel.layout import join_pieces, pieces_of
from spdf_dist.sparsity.assignment import sparse_weights
from spdf_dist.sparsity.masks import logical_weights

STANDARD_DEVIATION = 0.02


def initial_tensor(name: str, shape: tuple[int, ...], model: ModelConfig, seed: int) -> Tensor:
    """The dense initial value, fp32, of a global tensor: N(0, 0.02), residual projections N(0, 0.02 / sqrt(2 L))."""
    leaf = name.rsplit(".", 1)[1]
    if leaf.startswith("b_") or leaf == "bias":
        return torch.zeros(shape)
    if leaf == "weight":
        return torch.ones(shape)
    std = STANDARD_DEVIATION
    if leaf in ("W_D", "W_O"):
        std /= math.sqrt(2 * model.num_layers)
    generator = torch.Generator().manual_seed(derive_seed("init", seed, name) >> 1)
    return torch.randn(shape, generator=generator).mul_(std)


@torch.no_grad()
def initialize_parameters(module: nn.Module, model: ModelConfig, sparsity: SparsityConfig, seed: int) -> None:
    """Fill this rank's parameters in place."""
    weights = sparse_weights(logical_weights(model), sparsity)
    densities = {name: weight.kept / weight.numel for name, weight in weights.items()}
    for parameter in module.parameters():
        contents = {}
        for piece in pieces_of(parameter):
            whole = initial_tensor(piece.name, piece.shape, model, seed)
            part = whole if piece.dim is None else whole.narrow(piece.dim, piece.start, piece.stop - piece.start)
            if piece.mask is not None:
                part = part[piece.mask]
                if sparsity.init_scale == "fan_in":
                    part = part / math.sqrt(densities[piece.name])
            contents[piece.name] = part
        join_pieces(pieces_of(parameter), contents, parameter)
