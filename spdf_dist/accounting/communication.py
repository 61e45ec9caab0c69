"""Communication of one rank in one optimizer step: payload of collectives, and bytes sent over its links.

Tensor parallelism all-reduces activations of B T d values per micro-batch. In the forward pass, the all-reduces follow
the embedding, and the attention projection and the MLP of each layer. In the backward pass, they follow the gradients
with respect to the inputs of Q, K and V, of each MLP, and of the output layer. The loss all-reduces four fp32 numbers
per token. Recomputation repeats the forward all-reduce after the attention projection, but not the one after the MLP:
torch stops recomputing at the last tensor that the backward pass needs. Sequence parallelism replaces each all-reduce
of a layer by an all-gather and a reduce-scatter, which together send the same number of bytes.

Muon sends every shard of a matrix to the tensor rank that orthogonalises it and back, in fp32 and once per step; the
data ranks divide the matrices. The parts of matrices that lie in two partitions are not counted.

Data parallelism all-reduces gradients in fp32: once per step, or once per micro-batch at stage 2. Stages 1 and 2 then
all-gather the updated weights. Stage 3 reduce-scatters gradients in fp32 and all-gathers weights per micro-batch: those
of the layers for the forward and for the backward pass, the others once. A reduce-scatter sends half of an all-reduce.
On a ring of n ranks, an all-reduce sends 2 (n - 1) / n of its input, and an all-gather
sends (n - 1) / n of its output.
"""

from __future__ import annotations

from spdf_dist.accounting.layout import Layout, local_elements
from spdf_dist.config.schema import ModelConfig, SparsityConfig
from spdf_dist.model.architecture import architecture_of


def tensor_payload(model: ModelConfig, layout: Layout, global_batch: int, seq_length: int) -> int:
    """Bytes of a rank's tensor-parallel all-reduces in one step, with sequences of ``seq_length`` tokens."""
    if layout.tensor == 1:
        return 0
    tokens = layout.micro_batch * seq_length
    sums = 4 * model.num_layers + 2
    if layout.activation_checkpointing:
        sums += model.num_layers
    activations = sums * tokens * model.hidden_size * layout.value_bytes
    return layout.accumulation(global_batch) * (activations + 4 * 4 * tokens)


def matrix_payload(model: ModelConfig, layout: Layout) -> int:
    """Bytes of matrices that a rank passes through its tensor group in one update of Muon, there and back."""
    if layout.optimizer != "muon" or layout.tensor == 1:
        return 0
    tensors = architecture_of(model).tensors.values()
    elements = sum(tensor.local_numel(layout.tensor) for tensor in tensors if tensor.is_hidden_matrix)
    return 2 * 4 * elements // (layout.data if layout.zero_stage else 1)


def data_payload(
    model: ModelConfig, sparsity: SparsityConfig | None, layout: Layout, global_batch: int
) -> dict[str, int]:
    """Bytes of a rank's gradient reductions and weight all-gathers in one step."""
    if layout.data == 1:
        return {"gradients": 0, "weights": 0}
    local = local_elements(model, sparsity, layout)
    if layout.zero_stage == 3:
        times, layers = layout.accumulation(global_batch), model.num_layers * local.layer
        return {
            "gradients": 4 * local.parameters * times,
            "weights": layout.value_bytes * (2 * layers + local.ends) * times,
        }
    times = layout.accumulation(global_batch) if layout.zero_stage == 2 else 1
    gathered = layout.value_bytes * local.padded(layout.data, layout.optimizer) if layout.zero_stage else 0
    return {"gradients": 4 * local.parameters * times, "weights": gathered}


def communication(
    model: ModelConfig,
    sparsity: SparsityConfig | None,
    layout: Layout,
    global_batch: int,
    seq_length: int | None = None,
) -> dict[str, int]:
    """Bytes per step of one rank: payloads of its collectives, and bytes that rings send from it.

    ``seq_length`` is the mean number of tokens of a sequence; None: that of the model.
    """
    tensor = tensor_payload(model, layout, global_batch, seq_length or model.seq_length)
    data = data_payload(model, sparsity, layout, global_batch)
    matrices = matrix_payload(model, layout)
    t, n = layout.tensor, layout.data
    return {
        "tensor_payload": tensor,
        "gradient_payload": data["gradients"],
        "weight_payload": data["weights"],
        "matrix_payload": matrices,
        "tensor_sent": (t - 1) * (2 * tensor + matrices) // t,
        "data_sent": (n - 1) * ((1 if layout.zero_stage == 3 else 2) * data["gradients"] + data["weights"]) // n,
    }
