"""The architecture of a model as a table of its tensors. Every other module derives its facts from this table.

Masks, parameter counts, FLOPs, memory, initialisation, weight decay, checkpoint shapes, Hugging Face import and export
and validation all read it. This module imports no torch. Each model family has a folder beside this file
(docs/model_families.md); its ``architecture.py`` lists the tensors.

Names of global tensors, the same in checkpoints, inspection and export, start with `embedding.`, `layers.{i}.` or
`ln_f.`, or are `head.weight`. The matrices of a layer are `layers.{i}.W_*`, of shape [out, in].
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
"""Logits that the loss holds at once, elements: 128 MiB. Each chunk adds into the embedding's gradient once, so smaller
chunks would do so more often."""

LOGITS_CHUNK_CUDA = 128 * 2**20
"""The same on a GPU, where products of few tokens do not fill the chip: 256 MiB in bf16."""

Role = Literal["embedding", "hidden", "residual_output", "norm", "bias", "head"]
"""What a tensor does. `hidden` and `residual_output` are matrices; the output of the second is added to the residual
stream. `embedding` is a look-up table (it is also the output layer where the two are tied)."""


@dataclass(frozen=True)
class TensorSpec:
    """One global tensor."""

    name: str
    """Global name."""
    shape: tuple[int, ...]
    """Global shape, without vocabulary padding."""
    role: Role
    part: str
    """What tables and reports count it under: a matrix's own name without its layer, as W_Q, or a group, as norms."""
    parameter: str
    """Path of the parameter of the training model that holds it. Tensors with the same path are stacked along
    dimension 0, in the order of the table."""
    hf_name: str
    """Name of the tensor at Hugging Face that holds it. Tensors with the same name lie there side by side, in order,
    along the output dimension."""
    hf_transposed: bool = False
    """Whether a matrix lies there as [in, out]."""
    stack: str | None = None
    """The linear of its layer that it belongs to (see ``Architecture.stacks``); None for all but weights and biases of
    linears."""
    shard_dim: int | None = None
    """Dimension that tensor parallelism divides; None: every tensor rank holds the whole tensor."""
    padded: bool = False
    """Whether dimension 0 is the vocabulary, which is padded so that it divides among tensor ranks."""
    prunable: bool = False
    """Whether a mask may apply."""
    initial_mean: float = 0.0
    initial_std: float = 0.0
    """The initial entries are N(initial_mean, initial_std^2); a standard deviation of 0 makes them constant."""
    flops_part: str | None = None
    """The part of the FLOPs table that counts it. None: it is not multiplied with every token."""

    @property
    def numel(self) -> int:
        """Entries of the global tensor."""
        return math.prod(self.shape)

    @property
    def decays(self) -> bool:
        """Whether weight decay applies: to matrices and embeddings, by role and not by number of dimensions."""
        return self.role not in ("norm", "bias")

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
    """What the forward pass keeps per token for the backward pass, with fused attention and without dropout.

    Beside these it keeps the outputs of both norms of a layer, which enter linears. Values take the bytes of an
    activation, 2 under bf16; fp32 numbers always take 4.
    """

    norm_values: int
    """Of each norm, beside its output."""
    norm_fp32: int
    """Of each norm."""
    divided_values: int
    """Of one layer, divided among the tensor ranks."""
    divided_fp32: int
    """Of one layer, divided among the tensor ranks."""


@dataclass(frozen=True)
class Architecture:
    """The tensors of a model, in the order of checkpoints."""

    model: ModelConfig
    tensors: Mapping[str, TensorSpec]
    """By global name."""

    @functools.cached_property
    def prunable(self) -> dict[str, TensorSpec]:
        """The matrices that a mask may apply to, in the order of the layers."""
        return {name: tensor for name, tensor in self.tensors.items() if tensor.prunable}

    @functools.cached_property
    def targets(self) -> tuple[str, ...]:
        """The names that ``sparsity.targets`` may hold: those of the prunable matrices without their layers."""
        return tuple(dict.fromkeys(tensor.part for tensor in self.prunable.values()))

    @functools.cached_property
    def flops_parts(self) -> tuple[str, ...]:
        """The matrices and the output layer, as the FLOPs table names them."""
        return tuple(dict.fromkeys(t.flops_part for t in self.tensors.values() if t.flops_part))

    @functools.cached_property
    def linears(self) -> tuple[str, ...]:
        """Names of the linears of a layer. All layers have the same."""
        return tuple(dict.fromkeys(t.stack for t in self.tensors.values() if t.stack))

    def weights_of(self, layer: int, linear: str) -> list[TensorSpec]:
        """The matrices of one linear of layer ``layer``, in the order in which its parameter stacks them."""
        return [t for t in self._of_linear(layer, linear) if t.role != "bias"]

    def biases_of(self, layer: int, linear: str) -> list[TensorSpec]:
        """The biases of the same; empty where the family has none."""
        return [t for t in self._of_linear(layer, linear) if t.role == "bias"]

    def _of_linear(self, layer: int, linear: str) -> list[TensorSpec]:
        return [t for t in self.tensors.values() if t.stack == linear and t.name.startswith(f"layers.{layer}.")]

    def by_parameter(self) -> dict[str, list[TensorSpec]]:
        """The tensors that each parameter of the training model holds, by its path, in order."""
        found: dict[str, list[TensorSpec]] = {}
        for tensor in self.tensors.values():
            found.setdefault(tensor.parameter, []).append(tensor)
        return found


def padded_vocab_size(vocab_size: int, tensor_size: int) -> int:
    """The vocabulary rounded up so that every tensor rank holds the same number of rows."""
    multiple = VOCABULARY_MULTIPLE * tensor_size
    return -(-vocab_size // multiple) * multiple


def family_module(family: str, name: Literal["architecture", "layers", "hf", "inference"]) -> ModuleType:
    """A module of a family's folder. The names of their functions are listed in docs/model_families.md."""
    return importlib.import_module(f"spdf_dist.model.{family}.{name}")


@functools.lru_cache(maxsize=64)
def architecture_of(model: ModelConfig) -> Architecture:
    """The architecture of a model whose config is valid."""
    tensors: list[TensorSpec] = family_module(model.family, "architecture").tensors(model)
    return Architecture(model, {tensor.name: tensor for tensor in tensors})
