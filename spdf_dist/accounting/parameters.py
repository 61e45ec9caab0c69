"""Parameters of a model by part, and the non-zeros that a mask leaves. Vocabulary padding is never counted.

Source: SPDF, Table 1 (GPT-2 Small 125M, GPT-3 XL 1.3B) and appendix A.1 (what is sparse).
"""

from __future__ import annotations

import re
from fractions import Fraction

from spdf_dist.config.schema import LOGICAL_WEIGHTS, ModelConfig, SparsityConfig


def linear_shapes(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """[out, in] of the six matrices of one layer, by logical name."""
    d, f = model.hidden_size, model.ffn
    return {"W_Q": (d, d), "W_K": (d, d), "W_V": (d, d), "W_D": (d, d), "W_I": (f, d), "W_O": (d, f)}


def kept_count(shape: tuple[int, int], sparsity: SparsityConfig) -> int:
    """Entries that the mask of one target keeps: numel - floor(level x numel), in exact decimal arithmetic.

    A block pattern counts blocks in the same way; N:M keeps N of every M.
    """
    rows, columns = shape
    level = Fraction(str(sparsity.level))
    block = re.fullmatch(r"block:(\d+)", sparsity.pattern)
    if block:
        size = int(block[1])
        blocks = (rows // size) * (columns // size)
        return (blocks - int(level * blocks)) * size * size
    n_of_m = re.fullmatch(r"(\d+):(\d+)", sparsity.pattern)
    if n_of_m and sparsity.level > 0:
        return rows * columns * int(n_of_m[1]) // int(n_of_m[2])
    return rows * columns - int(level * rows * columns)


def linear_nonzeros(model: ModelConfig, sparsity: SparsityConfig | None) -> dict[str, int]:
    """Non-zeros of each of the six matrices of one layer."""
    return {
        name: kept_count(shape, sparsity) if sparsity and name in sparsity.targets else shape[0] * shape[1]
        for name, shape in linear_shapes(model).items()
    }


def parameter_counts(model: ModelConfig, sparsity: SparsityConfig | None = None) -> dict[str, int]:
    """Trainable parameters by part, over all layers; with ``sparsity`` only the kept entries of the targets.

    Parts: word_embedding (tied with the output layer, counted once), position_embedding, the six logical weights,
    biases, norms.
    """
    n, d, f = model.num_layers, model.hidden_size, model.ffn
    counts = {"word_embedding": model.vocab_size * d, "position_embedding": model.seq_length * d}
    counts |= {name: n * count for name, count in linear_nonzeros(model, sparsity).items()}
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
