"""Floating-point operations of a model by part, counted as in Tables 2 and 3 of the paper.

For one sequence of T tokens, n layers of width d, h heads, V vocabulary entries and the kept fraction 1 - s:

    each linear [out, in]    2 T out in (1 - s) n      a multiplication and an addition per kept entry and token
    attention                4 T^2 d n                 scores and weighted sum over all T x T pairs
    softmax                  3 h T^2 n
    logits                   2 T d V

Embedding look-ups, norms, activation functions, rotary positions and biases are not counted. The backward pass counts
twice the forward pass. Only ``executed_flops`` counts recomputation. Source: SPDF, appendix A.4. The module
``accounting.paper`` compares the results with the printed digits.
"""

from __future__ import annotations

from spdf_dist.accounting.parameters import nonzeros
from spdf_dist.config.schema import ModelConfig, SparsityConfig
from spdf_dist.model.architecture import architecture_of

MUON_ITERATIONS = 5
"""Newton-Schulz iterations of Muon on each matrix per update."""
TRAINING_FACTOR = 3
"""FLOPs of forward and backward pass, in units of a forward pass."""


def forward_flops(
    model: ModelConfig, sparsity: SparsityConfig | None = None, seq_length: int | None = None
) -> dict[str, int]:
    """FLOPs of the forward pass of one sequence, by part: linear layers, attention, softmax, logits.

    ``sparsity`` None or of level 0 means the dense model. ``seq_length`` (tokens) defaults to that of the model.
    """
    tokens = seq_length or model.seq_length
    kept = nonzeros(model, sparsity)
    flops = dict.fromkeys(linear_parts(model), 0)
    flops["attention"] = 4 * tokens * tokens * model.hidden_size * model.num_layers
    flops["softmax"] = 3 * model.num_attention_heads * tokens * tokens * model.num_layers
    flops["logits"] = 0
    for name, tensor in architecture_of(model).tensors.items():
        if tensor.flops_part is not None:
            dense = tokens * tensor.flops_per_token
            flops[tensor.flops_part] += dense * kept[name] // tensor.numel if tensor.prunable else dense
    return flops


def linear_parts(model: ModelConfig) -> list[str]:
    """The parts of ``forward_flops`` that are linear layers, whose FLOPs sparsity reduces."""
    return list(dict.fromkeys(t.flops_part for t in architecture_of(model).prunable.values() if t.flops_part))


def training_flops(model: ModelConfig, sparsity: SparsityConfig | None = None, seq_length: int | None = None) -> int:
    """FLOPs of training on one sequence, forward and backward, as ``model_flops`` and MFU count them."""
    return TRAINING_FACTOR * sum(forward_flops(model, sparsity, seq_length).values())


def executed_flops(
    model: ModelConfig,
    sparsity: SparsityConfig | None = None,
    execution: str = "masked",
    activation_checkpointing: bool = False,
    expanded: bool = False,
) -> int:
    """FLOPs that the hardware executes for training on one sequence, as HFU counts them.

    ``masked`` execution multiplies the zeros too. So does ``compressed`` where a GPU expands the weights
    (``expanded``). Activation checkpointing runs the forward pass of each layer once more.
    """
    skips = execution == "compressed" and not expanded
    done = forward_flops(model, sparsity if skips else None)
    again = sum(done.values()) - done["logits"] if activation_checkpointing else 0
    return TRAINING_FACTOR * sum(done.values()) + again


def linears_share(model: ModelConfig, seq_length: int | None = None) -> float:
    """Share of the linear layers in the FLOPs of the dense model: an upper bound of what sparsity can save."""
    flops = forward_flops(model, None, seq_length)
    return sum(flops[part] for part in linear_parts(model)) / sum(flops.values())
