"""Communication of one rank in one optimizer step: payload of collectives, and bytes sent over its links.

Tensor parallelism all-reduces activations of B T d values per micro-batch. In the forward pass, the all-reduces follow
the embedding, and the attention projection and the MLP of each layer. In the backward pass, they follow the gradients
with respect to the inputs of Q, K and V, of each MLP, and of the output layer. The loss all-reduces four fp32 numbers
per token. Recomputation repeats the forward all-reduce after the attention projection, but not the one after the MLP:
torch stops recomputing at the last tensor that the backward pass needs. Sequence parallelism replaces each all-reduce
of a layer by an all-gather and a reduce-scatter, which together send the same number of bytes.

Data parallelism all-reduces gradients in fp32: once per step, or once per micro-batch at stage 2. Stages 1 and 2 then
all-gather the updated weights. On a ring of n ranks, an all-reduce sends 2 (n - 1) / n of its input, and an all-gather
sends (n - 1) / n of its output.
"""

from __future__ import annotations

from spdf_dist.accounting.layout import Layout, local_elements
from spdf_dist.config.schema import ModelConfig, SparsityConfig


def tensor_payload(model: ModelConfig, layout: Layout, global_batch: int) -> int:
    """Bytes of a rank's tensor-parallel all-reduces in one step."""
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
    """Bytes of a rank's gradient all-reduces and weight all-gathers in one step."""
    if layout.data == 1:
        return {"gradients": 0, "weights": 0}
    local = local_elements(model, sparsity, layout)
    times = layout.accumulation(global_batch) if layout.zero_stage == 2 else 1
    gathered = layout.value_bytes * local.padded(layout.data) if layout.zero_stage else 0
    return {"gradients": 4 * local.parameters * times, "weights": gathered}


def communication(
    model: ModelConfig, sparsity: SparsityConfig | None, layout: Layout, global_batch: int
) -> dict[str, int]:
    """Bytes per step of one rank: payloads of its collectives, and bytes that rings send from it."""
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
