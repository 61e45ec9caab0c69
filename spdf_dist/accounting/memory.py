"""Memory of one rank by part, in bytes, for dense, masked and compressed execution.

State follows from how DeepSpeed keeps it (0.19): with N parameters on a tensor rank, p bytes each, over D data ranks

    weights     p N
    masters     4 N / D                  none at stage 0
    moments     8 N / D                  8 N at stage 0
    gradients   fp32: 4 N at stages 0 and 1; at stage 2 4 N / D and one bucket in flight
                bf16: 2 N beside fp32 sums of 4 N at stage 1, of 4 N / D at stage 2
    masks       1 byte per entry (masked)
    indices     1 bit per entry and 4 bytes per non-zero (compressed, plain torch path)
    code        up to 10 bytes per non-zero and direction (compressed, generated AVX-512 code), within the code budget

Activations are what the layers keep for the backward pass of one micro-batch, counted tensor by tensor below, and the
loss, which holds a chunk of logits at a time and the fp32 gradient of the output embedding. Compared with the tensors
of a real engine in tests/accounting/test_engine_bytes.py: weights, masters, moments and traffic to the byte.
"""

from __future__ import annotations

from spdf_dist.accounting.layout import Layout, local_elements
from spdf_dist.config.schema import ModelConfig, SparsityConfig
from spdf_dist.model.architecture import (
    LOGITS_CHUNK,
    LOGITS_CHUNK_CUDA,
    Activations,
    family_module,
    padded_vocab_size,
)

REDUCE_BUCKET = 500_000_000
"""DeepSpeed's default reduce_bucket_size, elements."""
CODE_BYTES = 20
"""Most bytes of generated code per non-zero, both directions together."""


def state_bytes(model: ModelConfig, sparsity: SparsityConfig | None, layout: Layout) -> dict[str, int]:
    """Weights, masters, moments and gradients."""
    local = local_elements(model, sparsity, layout)
    stage, data = layout.zero_stage, layout.data
    count = local.parameters if stage == 0 else local.padded(data)
    share = count if stage == 0 else count // data
    bucket = min(REDUCE_BUCKET, local.parameters)
    if layout.precision == "fp32":
        gradients = 4 * local.parameters if stage < 2 else 4 * (share + bucket)
    else:
        gradients = 2 * local.parameters + 4 * (count if stage < 2 else share)
    return {
        "weights": layout.value_bytes * count,
        "masters": 0 if stage == 0 else 4 * share,
        "moments": 8 * share,
        "gradients": gradients,
    }


def structure_bytes(
    model: ModelConfig, sparsity: SparsityConfig | None, layout: Layout, device: str, code_budget_mb: int = 1024
) -> dict[str, int]:
    """Masks, indices and generated code."""
    local = local_elements(model, sparsity, layout)
    code = min(CODE_BYTES * local.nonzeros, code_budget_mb * 2**20) if device == "cpu" else 0
    return {
        "masks": local.masked,
        "indices": -(-local.compressed // 8) + 4 * local.nonzeros,
        "code": code,
    }


def activations_of(model: ModelConfig) -> Activations:
    """What the family's layers keep per token."""
    kept: Activations = family_module(model.family, "architecture").activations(model)
    return kept


def layer_activation_bytes(model: ModelConfig, layout: Layout) -> int:
    """What one layer keeps for its backward pass; the family's ``activations`` counts it for one token."""
    tokens, t = layout.micro_batch * model.seq_length, layout.tensor
    kept, own = activations_of(model), own_tokens(model, layout)
    dropped = 2 * model.hidden_size if model.dropout > 0 else 0  # one byte per value, after attention and the MLP
    values = 2 * model.hidden_size * tokens + 2 * kept.norm_values * own + kept.divided_values * tokens // t
    fp32 = 2 * kept.norm_fp32 * own + kept.divided_fp32 * tokens // t
    return layout.value_bytes * values + 4 * fp32 + dropped * tokens


def own_tokens(model: ModelConfig, layout: Layout) -> int:
    """Tokens of a micro-batch that a tensor rank has outside the linears."""
    return layout.micro_batch * model.seq_length // (layout.tensor if layout.sequence else 1)


def activation_bytes(model: ModelConfig, layout: Layout, device: str = "cpu") -> dict[str, int]:
    """What one micro-batch holds at the end of its forward pass, by part; ``logits`` is the loss's passing buffer."""
    tokens, d, t = layout.micro_batch * model.seq_length, model.hidden_size, layout.tensor
    p = layout.value_bytes
    one, kept = layer_activation_bytes(model, layout), activations_of(model)
    layers = model.num_layers * one
    if layout.activation_checkpointing:
        # Each layer's input, and one layer at a time in full.
        layers = model.num_layers * p * own_tokens(model, layout) * d + one
    rows = padded_vocab_size(model.vocab_size, t) // t
    on_gpu = device == "cuda"
    chunk = min(tokens, max(1, (LOGITS_CHUNK_CUDA if on_gpu else LOGITS_CHUNK) // rows)) * rows
    # A GPU with the whole vocabulary turns logits into their gradient in place; else an fp32 copy lies beside them.
    logit = p if on_gpu and t == 1 else 4 + (p if p < 4 else 0)
    return {
        "layers": layers,
        # The last norm, the gradient of its output; token ids, and positions of one sequence.
        "ends": (p * kept.norm_values + 4 * kept.norm_fp32) * own_tokens(model, layout)
        + (p * d + 8) * tokens
        + 8 * model.seq_length,
        "loss": 4 * rows * d,
        "logits": chunk * logit,
    }


def memory(
    model: ModelConfig,
    sparsity: SparsityConfig | None,
    layout: Layout,
    device: str = "cuda",
    code_budget_mb: int = 1024,
) -> dict[str, int]:
    """Bytes of one rank by part, and their ``total``. The allocator's own losses are not in it."""
    parts = state_bytes(model, sparsity, layout) | structure_bytes(model, sparsity, layout, device, code_budget_mb)
    parts["activations"] = sum(activation_bytes(model, layout, device).values())
    return parts | {"total": sum(parts.values())}
