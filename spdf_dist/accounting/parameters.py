"""Parameters of a model by part, and the non-zeros that a mask leaves. Vocabulary padding is never counted.

Source: SPDF, Table 1 (GPT-2 Small 125M, GPT-3 XL 1.3B) and appendix A.1 (what is sparse).
"""

from __future__ import annotations

from spdf_dist.config.schema import LOGICAL_WEIGHTS, ModelConfig, SparsityConfig
from spdf_dist.sparsity.assignment import leaf, real_level, sparse_weights
from spdf_dist.sparsity.masks import logical_weights


def linear_shapes(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """[out, in] of the six matrices of one layer, by logical name."""
    d, f = model.hidden_size, model.ffn
    return {"W_Q": (d, d), "W_K": (d, d), "W_V": (d, d), "W_D": (d, d), "W_I": (f, d), "W_O": (d, f)}


def linear_nonzeros(model: ModelConfig, sparsity: SparsityConfig | None) -> dict[str, int]:
    """Kept entries of each of the six matrices, over all layers; all entries without ``sparsity``."""
    shapes = logical_weights(model)
    sparse = sparse_weights(shapes, sparsity) if sparsity is not None and sparsity.is_sparse else {}
    counts = dict.fromkeys(LOGICAL_WEIGHTS, 0)
    for name, (rows, columns) in shapes.items():
        counts[leaf(name)] += sparse[name].kept if name in sparse else rows * columns
    return counts


def real_sparsity(model: ModelConfig, sparsity: SparsityConfig) -> float:
    """The share of pruned entries over the weights that have a mask, as the masks have it; 0 for a dense model."""
    return real_level(sparse_weights(logical_weights(model), sparsity))


def parameter_counts(model: ModelConfig, sparsity: SparsityConfig | None = None) -> dict[str, int]:
    """Trainable parameters by part, over all layers; with ``sparsity`` only the kept entries of the targets.

    Parts: word_embedding (tied with the output layer, counted once), position_embedding, the six logical weights,
    biases, norms.
    """
    n, d, f = model.num_layers, model.hidden_size, model.ffn
    counts = {"word_embedding": model.vocab_size * d, "position_embedding": model.seq_length * d}
    counts |= linear_nonzeros(model, sparsity)
    counts["biases"] = n * (5 * d + f)
    counts["norms"] = (2 * n + 1) * 2 * d
    return counts


def total_parameters(model: ModelConfig, sparsity: SparsityConfig | None = None) -> int:
    """Sum of ``parameter_counts``."""
    return sum(parameter_counts(model, sparsity).values())


def linear_parameters(model: ModelConfig, sparsity: SparsityConfig | None = None) -> int:
    """Weights of the six matrices over all layers."""
    counts = parameter_counts(model, sparsity)
    return sum(counts[name] for name in LOGICAL_WEIGHTS)
