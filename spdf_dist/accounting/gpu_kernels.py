"""Efficiencies of the GPU kernels: sparse products by mask, and the work outside the products, fused or not.

In bf16, masks of whole blocks skip the pruned blocks. Every other mask is expanded to a dense weight. The products then
take the dense time and the time of the expansion. This module does not need torch. The kernels are in
spdf_kernels.triton.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from spdf_dist.config.schema import ModelConfig, SparsityConfig
from spdf_dist.model.architecture import architecture_of

BLOCKS = (128, 64)
"""Block edges that the kernels support, fastest first."""
EXPANDED_BYTES = 2.6
"""Memory traffic of `expand` or `gather`, bytes per entry: its mask bit, its bf16 value at density 1/4, and the dense
bf16 entry."""
PASSES = 3
"""Passes of this traffic per forward and backward pass: two of `expand`, one of `gather`."""


@dataclass(frozen=True)
class Rate:
    """Rate of a block kernel on one GPU."""

    relative: float
    """FLOP/s over kept entries, relative to a dense product. The speed-up is this rate divided by the density."""
    source: str
    """`ESTIMATE`, or the name of the results with the measurement."""


ESTIMATE = "estimate: arithmetic on data-sheet rates, not measured"
RATES: dict[str, dict[int, Rate]] = {
    "H100": {128: Rate(0.70, ESTIMATE), 64: Rate(0.50, ESTIMATE)},
    "H200": {128: Rate(0.70, ESTIMATE), 64: Rate(0.50, ESTIMATE)},
    "A100 40GB": {128: Rate(0.60, ESTIMATE), 64: Rate(0.45, ESTIMATE)},
    "A100 80GB": {128: Rate(0.60, ESTIMATE), 64: Rate(0.45, ESTIMATE)},
}
"""Rates by the GPU's name in accounting.hardware and by block edge. On a GPU that is not listed, weights are expanded.
Replace estimates by measurements of `make gpu`, and name their results."""


MEMORY_BOUND = 0.13
"""Share of a dense step for the work outside the products, in fused kernels: 15% of the time of the linear layers. An
estimate, not measured."""


def values_moved(model: ModelConfig, fused: bool) -> int:
    """Values that the work outside products and attention reads and writes per token and layer, forward and backward.

    ``fused``: by the kernels in spdf_kernels.triton.layers; otherwise by torch, one operation after the other. Counted
    by hand from the operations, with D values of the residual stream, F of the hidden layer and K of keys and values.
    """
    D, F, K = model.hidden_size, model.ffn, model.key_value_heads * model.head_size
    joined = 2 * (D + 2 * K)  # the gradients of Q, K and V are written side by side
    if model.family == "llama":
        # Rotary positions take 12 passes over Q and K in each direction; no kernel here fuses them.
        rotary = 24 * (D + K) + joined
        return 17 * D + 8 * F + rotary if fused else 30 * D + 18 * F + rotary
    biases = D + 2 * K  # gradient of the bias of Q, K and V
    return 18 * D + 5 * F + biases + joined if fused else 32 * D + 6 * F + biases + joined


def skipped_block(model: ModelConfig, sparsity: SparsityConfig, precision: str, tensor: int = 1) -> int | None:
    """Edge of the blocks that GPU kernels skip in all sparse weights of a tensor rank; None where weights are expanded.

    The shards of all prunable weights must consist of whole blocks.
    """
    if precision != "bf16" or sparsity.permute:
        return None
    edges = []
    for pattern in (sparsity.pattern, *sparsity.patterns.values()):
        match = re.fullmatch(r"(?:block|balanced):(\d+)", pattern)
        edge = next((edge for edge in BLOCKS if match and int(match[1]) % edge == 0), None)
        if edge is None:
            return None
        edges.append(edge)
    edge = min(edges)
    shapes = [spec.shape for spec in architecture_of(model).prunable.values()]
    divides = all(size % (edge * tensor) == 0 for shape in shapes for size in shape)
    return edge if divides else None


def rate_of(gpu: str, block: int | None) -> Rate | None:
    """The rate of a GPU's kernels for a block edge; None where weights are expanded."""
    return None if block is None else RATES.get(gpu, {}).get(block)
