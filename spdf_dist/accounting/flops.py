"""Floating-point operations of a GPT by part, counted as the paper's Tables 2 and 3 count them.

For one sequence of T tokens through n layers of width d, MLP width f, h heads, V words, kept fraction 1 - s:

    each linear [out, in]    2 T out in (1 - s) n      a multiply and an add a kept weight and token
    attention                4 T^2 d n                 scores and weighted sum over all T x T pairs
    softmax                  3 h T^2 n
    logits                   2 T d V

Embedding look-ups, norms, GELU and biases count nothing; the backward pass is twice the forward. Recomputation is not
counted here (see ``executed_flops``). Source: SPDF, appendix A.4; checked digit by digit in ``accounting.paper``.
"""

from __future__ import annotations

from spdf_dist.accounting.parameters import linear_nonzeros
from spdf_dist.config.schema import ModelConfig, SparsityConfig

LINEARS = ("Q", "K", "V", "D", "I", "O")
PARTS = (*LINEARS, "attention", "softmax", "logits")
TRAINING_FACTOR = 3
"""Forward plus backward, in forwards."""


def forward_flops(
    model: ModelConfig, sparsity: SparsityConfig | None = None, seq_length: int | None = None
) -> dict[str, int]:
    """FLOPs of the forward pass of one sequence, by part (``PARTS``).

    ``sparsity`` None or of level 0 is the dense model; ``seq_length`` (tokens) defaults to the model's.
    """
    tokens = seq_length or model.seq_length
    n, d = model.num_layers, model.hidden_size
    nonzeros = linear_nonzeros(model, sparsity)
    flops = {part: 2 * tokens * nonzeros[f"W_{part}"] for part in LINEARS}
    flops["attention"] = 4 * tokens * tokens * d * n
    flops["softmax"] = 3 * model.num_attention_heads * tokens * tokens * n
    flops["logits"] = 2 * tokens * d * model.vocab_size
    return flops


def training_flops(model: ModelConfig, sparsity: SparsityConfig | None = None, seq_length: int | None = None) -> int:
    """FLOPs of training on one sequence, forward and backward: what ``model_flops`` and MFU count."""
    return TRAINING_FACTOR * sum(forward_flops(model, sparsity, seq_length).values())


def executed_flops(
    model: ModelConfig,
    sparsity: SparsityConfig | None = None,
    execution: str = "masked",
    activation_checkpointing: bool = False,
    seq_length: int | None = None,
) -> int:
    """FLOPs that the machine really does for one sequence of training: what HFU counts.

    ``masked`` multiplies the zeros too; activation checkpointing runs each layer's forward once more.
    """
    done = forward_flops(model, sparsity if execution == "compressed" else None, seq_length)
    again = sum(done.values()) - done["logits"] if activation_checkpointing else 0
    return TRAINING_FACTOR * sum(done.values()) + again


def linears_share(model: ModelConfig, seq_length: int | None = None) -> float:
    """Share of the six matrices in the dense model's FLOPs: the most that sparsity could ever save."""
    flops = forward_flops(model, None, seq_length)
    return sum(flops[part] for part in LINEARS) / sum(flops.values())
