"""What sparse products cost on a GPU: which masks the kernels skip, and at what rate.

Masks of whole blocks skip the pruned blocks in bf16. Every other mask is expanded to a dense weight: the products take
the dense time and a little more. Torch-free; the kernels themselves are in spdf_kernels.triton.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from spdf_dist.config.schema import ModelConfig, SparsityConfig
from spdf_dist.model.architecture import architecture_of

BLOCKS = (128, 64)
"""Edges that the kernels skip, the faster first."""
EXPANDED_BYTES = 2.6
"""Memory traffic of `expand` or `gather` for each weight: its bits, a quarter of the values, the dense bf16 entry."""
PASSES = 3
"""Of them in forward and backward: two of `expand`, one of `gather`."""


@dataclass(frozen=True)
class Rate:
    """Rate of a block kernel on one GPU."""

    relative: float
    """FLOP/s over kept entries, divided by the FLOP/s of a dense product: 1 / density times it is the speed-up."""
    source: str
    """`estimate`, or the results that it was measured in."""


ESTIMATE = "estimate: arithmetic on data-sheet rates, not measured"
RATES: dict[str, dict[int, Rate]] = {
    "H100": {128: Rate(0.70, ESTIMATE), 64: Rate(0.50, ESTIMATE)},
    "H200": {128: Rate(0.70, ESTIMATE), 64: Rate(0.50, ESTIMATE)},
    "A100 40GB": {128: Rate(0.60, ESTIMATE), 64: Rate(0.45, ESTIMATE)},
    "A100 80GB": {128: Rate(0.60, ESTIMATE), 64: Rate(0.45, ESTIMATE)},
}
"""By name in accounting.hardware and block edge. A GPU that is not here expands. Replace estimates by what
`make gpu` measures, and name the results."""


def skipped_block(model: ModelConfig, sparsity: SparsityConfig, precision: str, tensor: int = 1) -> int | None:
    """Edge of the blocks that GPU kernels skip in all sparse weights of one tensor rank; None where they expand.

    A shard of a row-parallel weight must not cut a block.
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
    """The rate of a GPU's kernels for a block edge; None where the products are expanded."""
    return None if block is None else RATES.get(gpu, {}).get(block)
