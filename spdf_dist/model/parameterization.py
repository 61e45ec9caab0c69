"""How initial weights, learning rates and multipliers depend on width, density and depth. It needs no torch.

`standard` is GPT-2's: one standard deviation and one learning rate for all widths. With `supar`, the best learning rate
and standard deviation of a base model stay the best at other widths and densities. For a hidden matrix whose fan-in is
m times the base's, with density rho, sigma the base's standard deviation, eta its learning rate, lambda its decay, L
the number of layers and m_d the width over the base's:

    initial variance         sigma^2 / (m rho); for residual outputs also divided by 2L, as in the family's table
    AdamW's learning rate    eta / (m rho)
    weight decay             lambda, or lambda m rho with weight_decay_scaling `product` (eta lambda is the base's)
    logits                   times output_multiplier / m_d
    attention scores         times attention_multiplier / head size, instead of 1 / sqrt(head size)
    embeddings' output       times embedding_multiplier

Embeddings, norms and biases have the base's standard deviation and learning rate. ``base_num_layers`` adds CompleteP's
depth rule: the branches are multiplied by base_num_layers / L, and residual outputs are not divided by sqrt(2L).

Sources: Dey, Bergsma and Hestness, SuPar (NeurIPS 2024, arXiv 2405.15743), Table 1; Dey et al., CompleteP (2025, arXiv
2505.01618); the product rule: Wang and Aitchison (arXiv 2405.13698).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from spdf_dist.config.schema import ModelConfig, TrainingConfig
from spdf_dist.model.architecture import Architecture, TensorSpec


@dataclass(frozen=True)
class Rule:
    """The rule of a parameterization for one tensor."""

    std: float
    """Standard deviation of the initial entries."""
    lr: float
    """Factor of the learning rate."""
    decay: float
    """Factor of the weight decay, for a tensor that decays."""


@dataclass(frozen=True)
class Multipliers:
    """Constant factors in the forward pass. They are part of the function that the weights compute."""

    embedding: float = 1.0
    """Factor of the embeddings' output."""
    output: float = 1.0
    """Factor of the hidden states before the output layer."""
    attention: float | None = None
    """Scale of the attention scores; None: 1 / sqrt(head size)."""
    branch: float = 1.0
    """Factor of the outputs of attention and MLP, before they are added to the residual stream."""


@dataclass(frozen=True)
class Parameterization:
    """A parameterization with its base sizes, as recorded in checkpoints. The fields are keys of ``training``."""

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
        """Whether the parameterization is `standard`, so that other programs compute the same from the weights."""
        return self.parameterization == "standard"

    def width(self, model: ModelConfig) -> float:
        """m_d: the hidden size divided by that of the base model; 1 for `standard`."""
        return 1.0 if self.is_standard else model.hidden_size / (self.base_hidden_size or model.hidden_size)

    def fan_in(self, model: ModelConfig, tensor: TensorSpec) -> float:
        """The fan-in of a hidden matrix divided by that of the base model. The inputs of W_O are the MLP's."""
        if tensor.part == "W_O" and self.base_ffn_hidden_size:
            return model.ffn / self.base_ffn_hidden_size
        return self.width(model)

    def multipliers(self, model: ModelConfig) -> Multipliers:
        """The constant factors of the forward pass."""
        if self.is_standard:
            return Multipliers()
        return Multipliers(
            embedding=self.embedding_multiplier,
            output=self.output_multiplier / self.width(model),
            attention=self.attention_multiplier / model.head_size,
            branch=self.base_num_layers / model.num_layers if self.base_num_layers else 1.0,
        )

    def rules(self, architecture: Architecture, densities: Mapping[str, float]) -> dict[str, Rule]:
        """The rule of every tensor by name. ``densities`` holds the densities of the sparse tensors."""
        table = architecture.tensors
        sigma = table["embedding.word"].initial_std
        scale = 1.0 if self.init_std is None else self.init_std / sigma
        rules = {}
        for name, tensor in table.items():
            std = tensor.initial_std if scale == 1 else tensor.initial_std * scale
            if self.is_standard or not tensor.is_hidden_matrix:
                rules[name] = Rule(std, 1.0, 1.0)
                continue
            if self.base_num_layers:
                std = sigma * scale
            product = self.fan_in(architecture.model, tensor) * densities.get(name, 1.0)
            decay = product if self.weight_decay_scaling == "product" else 1.0
            rules[name] = Rule(std / math.sqrt(product), 1 / product, decay)
        return rules

    def folding(self, architecture: Architecture) -> dict[str, float]:
        """Factors by tensor name with which the weights compute the same function without multipliers.

        Tensors with a factor of 1 are absent. The attention factor is folded into the queries, the branch factor into
        residual outputs, the embedding factor into the embeddings, and the output factor into the last norm. If the
        output layer is tied to the word embedding, the last norm also cancels the embedding factor.
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
