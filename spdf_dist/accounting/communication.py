"""Bytes that one rank gives to collectives and sends over its links in one optimizer step.

Tensor parallelism sums activations of B T d values per micro-batch: in the forward pass after the embedding and after
the attention's projection and the MLP of each layer; in the backward pass before Q, K, V and before the MLP of each
layer and before the output layer; and four fp32 numbers per token for the loss. Recomputation repeats the forward sum
after the attention's projection (torch stops it at the last tensor that it needs, before the MLP's). Sequence
parallelism has a gather and a scattered sum in the place of each sum of a layer, which together send as much.

Data parallelism sums gradients in fp32: once per step, at stage 2 once per micro-batch; stages 1 and 2 then gather the
updated weights. A ring sends 2 (n - 1) / n of what a sum is given, (n - 1) / n of what a gather yields.
"""

from __future__ import annotations

from spdf_dist.accounting.layout import Layout, local_elements
from spdf_dist.config.schema import ModelConfig, SparsityConfig


def tensor_payload(model: ModelConfig, layout: Layout, global_batch: int) -> int:
    """Bytes that a rank gives to tensor-parallel sums in one step."""
    if layout.tensor == 1:
        return 0
    tokens = layout.micro_batch * model.seq_length
    sums = 4 * model.num_layers + 2
    if layout.activation_checkpointing:
        sums += model.num_layers
    activations = sums * tokens * model.hidden_size * layout.value_bytes
    return layout.accumulation(global_batch) * (activations + 4 * 4 * tokens)


def data_payload(
    model: ModelConfig, sparsity: SparsityConfig | None, layout: Layout, global_batch: int
) -> dict[str, int]:
    """Bytes that a rank gives to gradient sums, and gathers of weights, in one step."""
    if layout.data == 1:
        return {"gradients": 0, "weights": 0}
    local = local_elements(model, sparsity, layout)
    times = layout.accumulation(global_batch) if layout.zero_stage == 2 else 1
    gathered = layout.value_bytes * local.padded(layout.data) if layout.zero_stage else 0
    return {"gradients": 4 * local.parameters * times, "weights": gathered}


def communication(
    model: ModelConfig, sparsity: SparsityConfig | None, layout: Layout, global_batch: int
) -> dict[str, int]:
    """Bytes per step: what a rank gives to collectives, and what a ring then sends from it."""
    tensor = tensor_payload(model, layout, global_batch)
    data = data_payload(model, sparsity, layout, global_batch)
    t, n = layout.tensor, layout.data
    return {
        "tensor_payload": tensor,
        "gradient_payload": data["gradients"],
        "weight_payload": data["weights"],
        "tensor_sent": 2 * (t - 1) * tensor // t,
        "data_sent": (2 * (n - 1) * data["gradients"] + (n - 1) * data["weights"]) // n,
    }
