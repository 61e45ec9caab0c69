"""Parameters of a model by part, with and without masks. Vocabulary padding is never counted.

Source: SPDF, Table 1 (GPT-2 Small 125M, GPT-3 XL 1.3B) and appendix A.1 (what is sparse).
"""

from __future__ import annotations

from spdf_dist.config.schema import ModelConfig, SparsityConfig
from spdf_dist.model.architecture import architecture_of
from spdf_dist.sparsity.assignment import real_level, sparse_weights
from spdf_dist.sparsity.masks import logical_weights


def nonzeros(model: ModelConfig, sparsity: SparsityConfig | None) -> dict[str, int]:
    """Kept entries of each logical weight, by global name; all entries without ``sparsity``."""
    shapes = logical_weights(model)
    sparse = sparse_weights(shapes, sparsity) if sparsity is not None and sparsity.is_sparse else {}
    return {name: sparse[name].kept if name in sparse else rows * columns for name, (rows, columns) in shapes.items()}


def real_sparsity(model: ModelConfig, sparsity: SparsityConfig) -> float:
    """The share of pruned entries among the weights with a mask; 0 for a dense model."""
    return real_level(sparse_weights(logical_weights(model), sparsity))


def parameter_counts(model: ModelConfig, sparsity: SparsityConfig | None = None) -> dict[str, int]:
    """Trainable parameters by part, over all layers. With ``sparsity``, only the kept entries of sparse weights count.

    The parts are those of the architecture's table: word_embedding, position_embedding, each logical weight, biases,
    norms. Tied parameters count once.
    """
    kept = nonzeros(model, sparsity)
    counts: dict[str, int] = {}
    for name, tensor in architecture_of(model).tensors.items():
        counts[tensor.part] = counts.get(tensor.part, 0) + kept.get(name, tensor.numel)
    return counts


def total_parameters(model: ModelConfig, sparsity: SparsityConfig | None = None) -> int:
    """Sum of ``parameter_counts``."""
    return sum(parameter_counts(model, sparsity).values())


def linear_parameters(model: ModelConfig, sparsity: SparsityConfig | None = None) -> int:
    """Kept entries of all logical weights."""
    return sum(nonzeros(model, sparsity).values())
