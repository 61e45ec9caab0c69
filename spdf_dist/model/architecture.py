"""The architecture of a model as a table of its tensors. Every other module derives its facts from this table.

Masks, parameter counts, FLOPs, memory, initialisation, weight decay, checkpoint shapes, Hugging Face import and export
and validation all use it. This module imports no torch. Each model family has a folder beside this file
(docs/model_families.md); its ``architecture.py`` lists the tensors.

Names of global tensors are the same in checkpoints, inspection and export. They start with `embedding.`, `layers.{i}.`
or `ln_f.`, or are `head.weight`. The matrices of a layer are `layers.{i}.W_*`, of shape [out, in].
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from spdf_dist.config.schema import ModelConfig

FAMILIES = ("gpt2", "llama")
"""Values of ``model.family``. Each is a package beside this module with `architecture`, `layers`, `inference`
and `hf`."""

VOCABULARY_MULTIPLE = 8
"""The rows of the padded vocabulary on each tensor rank are a multiple of this."""

LOGITS_CHUNK = 32 * 2**20
"""Maximum number of logits (elements) that the loss holds at once; 128 MiB in fp32. Smaller chunks would accumulate
into the embedding's gradient more often."""

LOGITS_CHUNK_CUDA = 128 * 2**20
"""The same on a GPU, where smaller matrix products would not use the whole chip; 256 MiB in bf16."""

Role = Literal["embedding", "hidden", "residual_output", "norm", "bias", "head"]
"""The role of a tensor. `hidden` and `residual_output` are matrices of a layer; the output of the latter is added to
the residual stream. `embedding` is a look-up table, which is also the output layer if the two are tied."""


@dataclass(frozen=True)
class TensorSpec:
    """One global tensor."""

    name: str
    """Name of the global tensor."""
    shape: tuple[int, ...]
    """Global shape, without vocabulary padding."""
    role: Role
    part: str
    """The row that counts it in tables and reports: a matrix's name without its layer (W_Q), or a group (norms)."""
    parameter: str
    """Path of the parameter of the training model that holds it. Tensors with the same path are stacked along
    dimension 0, in the order of the table."""
    hf_name: str
    """Name of the tensor in a Hugging Face model that holds it. Tensors with the same name are concatenated there along
    the output dimension, in the order of the table."""
    hf_transposed: bool = False
    """Whether Hugging Face stores the matrix as [in, out]."""
    stack: str | None = None
    """The linear of its layer that it belongs to (see ``Architecture.linears``). None for tensors that are not a weight
    or bias of a linear."""
    shard_dim: int | None = None
    """Dimension that tensor parallelism divides; None: every tensor rank holds the whole tensor."""
    padded: bool = False
    """Whether dimension 0 is the vocabulary, which is padded so that the tensor ranks can divide it evenly."""
    prunable: bool = False
    """Whether the tensor may have a mask."""
    initial_mean: float = 0.0
    """Mean of the initial entries."""
    initial_std: float = 0.0
    """Standard deviation of the initial entries, which are normally distributed; 0: they are constant."""
    flops_part: str | None = None
    """The part of the FLOPs table that counts it. None: it is not multiplied with every token."""

    @property
    def numel(self) -> int:
        """Entries of the global tensor."""
        return math.prod(self.shape)

    @property
    def decays(self) -> bool:
        """Whether weight decay applies: to matrices and embeddings, by role and not by the number of dimensions."""
        return self.role not in ("norm", "bias")

    @property
    def is_hidden_matrix(self) -> bool:
        """Whether it is a matrix of a layer."""
        return self.role in ("hidden", "residual_output")

    @property
    def flops_per_token(self) -> int:
        """FLOPs of the dense tensor for one token in the forward pass: a multiplication and an addition per entry."""
        return 2 * self.numel if self.flops_part else 0

    def local_numel(self, tensor_size: int) -> int:
        """Entries on one of ``tensor_size`` tensor ranks, with vocabulary padding."""
        rows = padded_vocab_size(self.shape[0], tensor_size) if self.padded else self.shape[0]
        return self.numel // self.shape[0] * rows // (1 if self.shard_dim is None else tensor_size)


@dataclass(frozen=True)
class Activations:
    """Numbers per token that the forward pass keeps for the backward pass, with fused attention and without dropout.

    The outputs of both norms of a layer, which are inputs of linears, are kept too but not counted here. A value takes
    the bytes of an activation, which are 2 under bf16. An fp32 number always takes 4 bytes.
    """

    norm_values: int
    """Values of each norm, besides its output."""
    norm_fp32: int
    """fp32 numbers of each norm."""
    divided_values: int
    """Values of one layer, which the tensor ranks divide."""
    divided_fp32: int
    """fp32 numbers of one layer, which the tensor ranks divide."""


@dataclass(frozen=True)
class Architecture:
    """The tensors of a model, in the order of checkpoints."""

    model: ModelConfig
    tensors: Mapping[str, TensorSpec]
    """Tensors by global name."""

    @functools.cached_property
    def prunable(self) -> dict[str, TensorSpec]:
        """The matrices that may have a mask, in the order of the layers."""
        return {name: tensor for name, tensor in self.tensors.items() if tensor.prunable}

    @functools.cached_property
    def targets(self) -> tuple[str, ...]:
        """The names that ``sparsity.targets`` may contain: those of the prunable matrices without their layers."""
        return tuple(dict.fromkeys(tensor.part for tensor in self.prunable.values()))

    @functools.cached_property
    def linears(self) -> tuple[str, ...]:
        """Names of the linears of a layer. All layers have the same ones."""
        return tuple(dict.fromkeys(t.stack for t in self.tensors.values() if t.stack))

    def weights_of(self, layer: int, linear: str) -> list[TensorSpec]:
        """The matrices of one linear of layer ``layer``, in the order in which its parameter stacks them."""
        return [t for t in self._of_linear(layer, linear) if t.role != "bias"]

    def biases_of(self, layer: int, linear: str) -> list[TensorSpec]:
        """The biases of one linear of layer ``layer``, in the same order; empty if the family has none."""
        return [t for t in self._of_linear(layer, linear) if t.role == "bias"]

    def _of_linear(self, layer: int, linear: str) -> list[TensorSpec]:
        return [t for t in self.tensors.values() if t.stack == linear and t.name.startswith(f"layers.{layer}.")]

    def by_parameter(self) -> dict[str, list[TensorSpec]]:
        """The tensors that each parameter of the training model holds, by the parameter's path, in order."""
        found: dict[str, list[TensorSpec]] = {}
        for tensor in self.tensors.values():
            found.setdefault(tensor.parameter, []).append(tensor)
        return found


def padded_vocab_size(vocab_size: int, tensor_size: int) -> int:
    """The vocabulary size, rounded up so that every tensor rank holds the same multiple of ``VOCABULARY_MULTIPLE``."""
    multiple = VOCABULARY_MULTIPLE * tensor_size
    return -(-vocab_size // multiple) * multiple


def family_module(family: str, name: Literal["architecture", "layers", "hf", "inference"]) -> ModuleType:
    """A module of a family's folder. docs/model_families.md lists the functions of these modules."""
    return importlib.import_module(f"spdf_dist.model.{family}.{name}")


@functools.lru_cache(maxsize=64)
def architecture_of(model: ModelConfig) -> Architecture:
    """The architecture of a model. The config must be valid."""
    tensors: list[TensorSpec] = family_module(model.family, "architecture").tensors(model)
    return Architecture(model, {tensor.name: tensor for tensor in tensors})
