"""Estimates time, cost and memory of a pre-training config on a cluster, from data-sheet figures.

Assumptions:
* Compute: executed FLOPs run at ``efficiency`` of the GPU's dense peak. They include the zeros of masked products and
  recomputation. The default 0.40 is typical of a well-tuned 1B model on H100 GPUs (MPT-1B: 41.8% MFU on 8 GPUs).
* Work outside the products: the share ``MEMORY_BOUND`` of a dense step's compute does not shrink with sparsity. Without
  the fused kernels it takes longer, in proportion to the values it moves.
* Sparse products: compressed masks of whole blocks run at the rate in accounting.gpu_kernels over kept entries. All
  other compressed masks are expanded to dense products.
* Optimizer: it reads and writes its state once per step at the memory bandwidth. Muon's products run at
  ``efficiency`` too.
* Traffic: it runs at ``LINK_SHARE`` of the data-sheet rate and does not overlap with compute. It uses the link within a
  node, and the network between nodes. Tensor-parallel traffic uses the network where ``parallel.tensor`` does not
  divide the GPUs of a node.
* Memory: a rank must fit in the share ``HEADROOM`` of the memory. The allocator, CUDA and NCCL use the rest.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, replace
from typing import Any

from spdf_dist.accounting.communication import communication
from spdf_dist.accounting.flops import (
    MUON_ITERATIONS,
    TRAINING_FACTOR,
    executed_flops,
    forward_flops,
    linear_parts,
    training_flops,
)
from spdf_dist.accounting.gpu_kernels import (
    EXPANDED_BYTES,
    MEMORY_BOUND,
    PASSES,
    Rate,
    rate_of,
    skipped_block,
    values_moved,
)
from spdf_dist.accounting.hardware import Gpu
from spdf_dist.accounting.layout import Layout, layout_of, local_elements, valid_layout
from spdf_dist.accounting.memory import memory
from spdf_dist.accounting.phases import phases
from spdf_dist.config.budget import total_steps
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import ModelConfig, PretrainConfig, SparsityConfig
from spdf_dist.config.validate import tensor_size_fits
from spdf_dist.model.architecture import architecture_of

EFFICIENCY = 0.40
HEADROOM = 0.90
LINK_SHARE = 0.80
NETWORK_BANDWIDTH = 50e9
"""Bytes/s per GPU between nodes: one 400 Gbit/s port per GPU."""
MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Cluster:
    """Nodes and GPUs that the estimate assumes."""

    nodes: int
    gpus_per_node: int
    gpu: Gpu
    efficiency: float = EFFICIENCY
    network_bandwidth: float = NETWORK_BANDWIDTH

    @property
    def gpus(self) -> int:
        """Number of GPUs on all nodes."""
        return self.nodes * self.gpus_per_node


def leaves_the_node(layout: Layout, cluster: Cluster) -> bool:
    """Whether a tensor-parallel group (of consecutive ranks) spans more than one node."""
    return cluster.nodes > 1 and cluster.gpus_per_node % layout.tensor != 0


def skipping_rate(config: PretrainConfig, layout: Layout, gpu: Gpu) -> Rate | None:
    """The rate of the kernels that skip this mask's blocks; None where the products run as dense products."""
    if layout.execution != "compressed":
        return None
    return rate_of(gpu.name, skipped_block(config.model, config.sparsity, layout.precision, layout.tensor))


def compute_seconds(config: PretrainConfig, layout: Layout, cluster: Cluster, fused: bool = True) -> float:
    """Seconds of compute per sequence on one GPU: forward, backward and recomputation.

    ``fused``: whether norms and activation functions use the fused kernels.
    """
    model, gpu = config.model, cluster.gpu
    rate = skipping_rate(config, layout, gpu)
    done = executed_flops(
        model, config.sparsity, layout.execution, layout.activation_checkpointing, expanded=rate is None
    )
    expansion = 0.0
    if rate is not None:
        kept = forward_flops(model, config.sparsity)
        linears = sum(kept[part] for part in linear_parts(model))
        passes = TRAINING_FACTOR + int(layout.activation_checkpointing)
        done += round(passes * linears * (1 / rate.relative - 1))
    elif layout.execution == "compressed":
        weights = local_elements(model, config.sparsity, layout).compressed
        expansion = PASSES * EXPANDED_BYTES * weights / gpu.memory_bandwidth / layout.micro_batch
    dense = executed_flops(model, None, "dense", layout.activation_checkpointing)
    outside = 1.0 if fused else values_moved(model, fused=False) / values_moved(model, fused=True)
    done = round((1 - MEMORY_BOUND) * done + MEMORY_BOUND * outside * dense)
    return done / (gpu.peak(layout.precision) * cluster.efficiency) + expansion


def products_text(config: PretrainConfig, layout: Layout, gpu: Gpu) -> str:
    """How the sparse products run on this GPU, and the source of their rate."""
    if layout.execution == "dense":
        return "dense"
    if layout.execution == "masked":
        return "masked: dense products, which multiply the zeros"
    rate = skipping_rate(config, layout, gpu)
    if rate is None:
        return "compressed: the weights are expanded, so that state and traffic shrink but not the time"
    block = skipped_block(config.model, config.sparsity, layout.precision, layout.tensor)
    return f"compressed: blocks of {block} are skipped at {rate.relative:.2f} of the dense rate ({rate.source})"


def muon_flops(model: ModelConfig, layout: Layout) -> float:
    """FLOPs of one rank's orthogonalisations in an update of Muon; 0 for AdamW.

    An iteration on a matrix [m, n], m <= n, has two products of m m n and one of m m m multiplications.
    """
    if layout.optimizer != "muon":
        return 0.0
    shapes = [sorted(t.shape) for t in architecture_of(model).tensors.values() if t.is_hidden_matrix]
    total = sum(MUON_ITERATIONS * (4 * m * m * n + 2 * m**3) for m, n in shapes)
    return total / layout.tensor / (layout.data if layout.zero_stage else 1)


def step_seconds(config: PretrainConfig, layout: Layout, cluster: Cluster) -> dict[str, float]:
    """Seconds of one optimizer step, by part."""
    batch = config.training.global_batch_size
    parts = memory(config.model, config.sparsity, layout)
    traffic = communication(config.model, config.sparsity, layout, batch)
    state = parts["masters"] + parts["moments"] + (parts["weights"] // layout.data if layout.zero_stage < 3 else 0)
    gpu = cluster.gpu
    link = LINK_SHARE * gpu.link_bandwidth
    network = LINK_SHARE * cluster.network_bandwidth if cluster.nodes > 1 else link
    return {
        "compute": compute_seconds(config, layout, cluster) * batch / cluster.gpus,
        "optimizer": 2 * state / gpu.memory_bandwidth
        + muon_flops(config.model, layout) / (gpu.peak(layout.precision) * cluster.efficiency),
        "tensor_parallel": traffic["tensor_sent"] / (network if leaves_the_node(layout, cluster) else link),
        "data_parallel": traffic["data_sent"] / network,
    }


def layouts(config: PretrainConfig, cluster: Cluster) -> list[Layout]:
    """Every layout on the cluster whose sizes divide the model, the GPUs of a node and the batch."""
    base, per_node = layout_of(config, cluster.gpus), cluster.gpus_per_node
    tensors = [n for n in range(1, per_node + 1) if per_node % n == 0 and tensor_size_fits(config.model, n)]
    stages = [1, 2] if base.precision == "bf16" else [0, 1, 2]
    if base.optimizer != "muon" and config.sparsity.algorithm == "static":
        stages.append(3)
    found = []
    for tensor, stage, micro, again in itertools.product(tensors, stages, MICRO_BATCHES, (False, True)):
        data = cluster.gpus // tensor
        if config.training.global_batch_size % (micro * data) == 0:
            ranks = replace(base, tensor=tensor, data=data, zero_stage=stage)
            found.append(replace(ranks, micro_batch=micro, activation_checkpointing=again))
    return found


def judge(config: PretrainConfig, layout: Layout, cluster: Cluster) -> dict[str, Any]:
    """Memory of a rank (bytes), whether it fits, and seconds per step, for one layout."""
    parts = memory(config.model, config.sparsity, layout)
    seconds = step_seconds(config, layout, cluster)
    return {
        "layout": asdict(layout),
        "memory_bytes": parts,
        "fits": parts["total"] <= HEADROOM * cluster.gpu.memory_bytes,
        "step_seconds": seconds | {"total": sum(seconds.values())},
    }


def best_layouts(candidates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The candidates that fit, fastest first.

    For each tensor size, ZeRO stage and recomputation, only the largest micro-batch is included.
    """
    chosen: dict[tuple[int, int, bool], dict[str, Any]] = {}
    for candidate in candidates:
        layout = candidate["layout"]
        key = (layout["tensor"], layout["zero_stage"], layout["activation_checkpointing"])
        if candidate["fits"] and (key not in chosen or layout["micro_batch"] > chosen[key]["layout"]["micro_batch"]):
            chosen[key] = candidate
    return sorted(chosen.values(), key=lambda c: c["step_seconds"]["total"])


def estimate(config: PretrainConfig, cluster: Cluster, gpu_hour_price: float | None = None) -> dict[str, Any]:
    """Memory, traffic, time and cost of the config, memory of each execution, and the fastest layouts that fit.

    Raises UserError when ``parallel.tensor`` does not divide the GPUs, when ``parallel.data`` needs another number of
    GPUs, or when the batch does not divide over the data ranks.
    """
    tensor, data = config.parallel.tensor, config.parallel.data
    if data is not None and tensor * data != cluster.gpus:
        raise UserError(
            f"parallel.data: {data} x parallel.tensor {tensor} are {tensor * data} ranks, not {cluster.gpus} GPUs"
        )
    try:
        layout = valid_layout(config, config.model, config.sparsity, cluster.gpus, "cuda")
    except UserError as error:
        raise UserError(f"{error} ({cluster.gpus} GPUs)") from None
    batch = config.training.global_batch_size
    own = judge(config, layout, cluster)
    steps = total_steps(config)
    fitting = best_layouts([judge(config, candidate, cluster) for candidate in layouts(config, cluster)])
    changing = config.sparsity.algorithm == "gmp"
    by_phase = [
        (judge(at_level, layout_of(at_level, cluster.gpus), cluster) if changing else own, count)
        for at_level, count in ((replace(config, sparsity=sparsity), count) for count, sparsity in phases(config))
    ]
    hours = sum(phase["step_seconds"]["total"] * count for phase, count in by_phase) / 3600
    model_flops = training_flops(config.model, config.sparsity) * batch
    peak = cluster.gpu.peak(layout.precision) * cluster.gpus
    executions = {}
    for name in ("dense", "masked", "compressed"):
        if name == "dense" or config.sparsity.is_sparse:
            dense = SparsityConfig() if name == "dense" else config.sparsity
            executions[name] = memory(config.model, dense, replace(layout, execution=name))
    return {
        "schema_version": 1,
        "gpu": asdict(cluster.gpu),
        "nodes": cluster.nodes,
        "gpus": cluster.gpus,
        "batch_divides": True,  # the check above raises otherwise; the key is part of schema version 1
        **own,
        "memory_by_execution": executions,
        "communication_bytes_per_step": communication(config.model, config.sparsity, layout, batch),
        "steps": steps,
        "tokens_per_second": batch * config.model.seq_length / own["step_seconds"]["total"],
        "mfu": model_flops / own["step_seconds"]["total"] / peak,
        "hours": hours,
        "gpu_hours": hours * cluster.gpus,
        "cost": None if gpu_hour_price is None else hours * cluster.gpus * gpu_hour_price,
        "best": fitting,
        "assumptions": {
            "kind": "estimate: a roofline, not a measurement",
            "efficiency": cluster.efficiency,
            "network_bytes_per_second": cluster.network_bandwidth,
            "link_bytes_per_second": cluster.gpu.link_bandwidth,
            "link_share": LINK_SHARE,
            "tensor_parallel_leaves_the_node": leaves_the_node(layout, cluster),
            "memory_headroom": HEADROOM,
            "masked_products_multiply_zeros": layout.execution == "masked",
            "sparse_products": products_text(config, layout, cluster.gpu),
            "outside_products_share": MEMORY_BOUND,
            "unfused_compute_seconds": compute_seconds(config, layout, cluster, fused=False) * batch / cluster.gpus,
        },
    }
