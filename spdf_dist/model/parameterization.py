"""How initial weights, learning rates and multipliers depend on width, density and depth. Needs no torch.

`standard` is GPT-2's: one standard deviation and one learning rate. `supar` keeps the best learning rate and standard
deviation of a base model over width and density. For a hidden matrix of fan-in m times the base's and density rho:

    initial variance         sigma^2 / (m rho)     residual outputs also / 2L, as in the family's table
    AdamW's learning rate    eta / (m rho)
    weight decay             lambda, or with weight_decay_scaling `product` lambda m rho: eta lambda is the base's
    logits                   output_multiplier / m_d
    attention                attention_multiplier / head size, in place of 1 / sqrt(head size)
    embeddings' output       embedding_multiplier

Embeddings, norms and biases have the base's deviation and rate. ``base_num_layers`` adds CompleteP's depth rule: the
branches are multiplied by base_num_layers / L and residual outputs are not divided by sqrt(2L).

Sources: Dey, Bergsma and Hestness, SuPar (NeurIPS 2024, arXiv 2405.15743), Table 1; Dey et al., CompleteP (2025, arXiv
2505.01618); the product rule: Wang and Aitchison (arXiv 2405.13698).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from spdf_dist.config.schema import ModelConfig, TrainingConfig
from spdf_dist.model.architecture import Architecture, TensorSpec

HIDDEN = ("hidden", "residual_output")
"""Roles of the matrices whose rules depend on width and density."""


@dataclass(frozen=True)
class Rule:
    """What a parameterization says of one tensor."""

    std: float
    """Standard deviation of the initial entries."""
    lr: float
    """Multiplies the learning rate."""
    decay: float
    """Multiplies the weight decay of a tensor that decays."""


@dataclass(frozen=True)
class Multipliers:
    """Constant factors in the forward pass; they are part of the function that the weights compute."""

    embedding: float = 1.0
    """Of the embeddings' output."""
    output: float = 1.0
    """Of the hidden states before the output layer."""
    attention: float | None = None
    """Scale of the scores; None: 1 / sqrt(head size)."""
    branch: float = 1.0
    """Of what attention and MLP add to the residual stream."""


@dataclass(frozen=True)
class Parameterization:
    """A parameterization with its base sizes, as checkpoints record it. The fields are keys of ``training``."""

    parameterization: str = "standard"
    base_hidden_size: int | None = None
    base_ffn_hidden_size: int | None = None
    base_num_layers: int | None = None
    init_std: float | None = None
    embedding_multiplier: float = 1.0
    output_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    weight_decay_scaling: str = "none"

    @property
    def is_standard(self) -> bool:
        """Whether weights mean what they mean in every other program."""
        return self.parameterization == "standard"

    def width(self, model: ModelConfig) -> float:
        """m_d: the width over the base's."""
        return 1.0 if self.is_standard else model.hidden_size / (self.base_hidden_size or model.hidden_size)

    def fan_in(self, model: ModelConfig, tensor: TensorSpec) -> float:
        """The fan-in of a hidden matrix over the base's; W_O reads the MLP's hidden layer."""
        if tensor.part == "W_O" and self.base_ffn_hidden_size:
            return model.ffn / self.base_ffn_hidden_size
        return self.width(model)

    def multipliers(self, model: ModelConfig) -> Multipliers:
        """The factors of the forward pass."""
        if self.is_standard:
            return Multipliers()
        return Multipliers(
            embedding=self.embedding_multiplier,
            output=self.output_multiplier / self.width(model),
            attention=self.attention_multiplier / model.head_size,
            branch=self.base_num_layers / model.num_layers if self.base_num_layers else 1.0,
        )

    def rules(self, architecture: Architecture, densities: Mapping[str, float]) -> dict[str, Rule]:
        """The rule of every tensor; ``densities`` holds those of the sparse ones."""
        table = architecture.tensors
        sigma = table["embedding.word"].initial_std
        scale = 1.0 if self.init_std is None else self.init_std / sigma
        rules = {}
        for name, tensor in table.items():
            std = tensor.initial_std if scale == 1 else tensor.initial_std * scale
            if self.is_standard or tensor.role not in HIDDEN:
                rules[name] = Rule(std, 1.0, 1.0)
                continue
            if self.base_num_layers:
                std = sigma * scale
            product = self.fan_in(architecture.model, tensor) * densities.get(name, 1.0)
            decay = product if self.weight_decay_scaling == "product" else 1.0
            rules[name] = Rule(std / math.sqrt(product), 1 / product, decay)
        return rules

    def folding(self, architecture: Architecture) -> dict[str, float]:
        """Factors by tensor after which the weights compute the same function without multipliers; 1 where absent.

        Attention's goes into the queries, the branches' into residual outputs, the embeddings' into the embeddings,
        the output's into the last norm, which also undoes the embeddings' where the output layer is tied to them.
        """
        model, factors = architecture.model, self.multipliers(architecture.model)
        if factors == Multipliers():
            return {}
        queries = (factors.attention or 1.0) * math.sqrt(model.head_size) if factors.attention else 1.0
        last_norm = factors.output / (factors.embedding if model.tie_embeddings else 1.0)
        residual_stacks = {tensor.stack for tensor in architecture.tensors.values() if tensor.role == "residual_output"}
        found = {}
        for name, tensor in architecture.tensors.items():
            last = name.rsplit(".", 1)[-1]
            if tensor.role == "embedding":
                found[name] = factors.embedding
            elif last in ("W_Q", "b_Q"):
                found[name] = queries
            elif tensor.stack in residual_stacks:
                found[name] = factors.branch
            elif name.startswith("ln_f."):
                found[name] = last_norm
        return {name: factor for name, factor in found.items() if factor != 1}


STANDARD = Parameterization()


def of_training(training: TrainingConfig) -> Parameterization:
    """The parameterization of a ``training`` section."""
    return Parameterization(**{field.name: getattr(training, field.name) for field in fields(Parameterization)})
