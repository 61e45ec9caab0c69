"""Memory of one rank by part, in bytes, for dense, masked and compressed execution.

Sizes of the state with N parameters of p bytes per tensor rank and D data ranks. At stages 0 to 2, DeepSpeed 0.19
stores:

    weights     p N
    masters     4 N / D                  0 at stage 0
    moments     8 N / D                  8 N at stage 0; with Muon 4 instead of 8 bytes for the layers' matrices
    gradients   fp32: 4 N at stages 0 and 1; 4 N / D and one bucket at stage 2
                bf16: 2 N, and fp32 sums of 4 N at stage 1 or 4 N / D at stage 2

At stage 3, FSDP2 stores, with L parameters of one layer and E outside the layers:

    weights     p (E + 2 L): the gathered ones, with the next layer's
    masters     4 N / D
    moments     8 N / D
    gradients   4 N / D, and those of one layer or of E before (p) and in (4) their reduction

Both:

    masks       1 byte per entry (masked)
    indices     1 bit per entry and 4 bytes per non-zero (compressed, plain torch path)
    code        up to 10 bytes per non-zero and direction (compressed, generated AVX-512 code) or 24 (AVX2 code), within
                the code budget

Activations are the tensors that the layers keep for the backward pass of one micro-batch, and the tensors of the loss:
one chunk of logits and the fp32 gradient of the output embedding. tests/accounting/test_engine_bytes.py compares these
sizes with the tensors of a real engine. Weights, masters, moments and traffic agree to the byte. Temporary copies of
one matrix in the update are not counted.
"""

from __future__ import annotations

from dataclasses import replace

from spdf_dist.accounting.layout import Layout, local_elements, padded
from spdf_dist.base.cpu import cpu_features
from spdf_dist.config.schema import ModelConfig, SparsityConfig
from spdf_dist.model.architecture import (
    LOGITS_CHUNK,
    LOGITS_CHUNK_CUDA,
    Activations,
    family_module,
    padded_vocab_size,
)

REDUCE_BUCKET = 500_000_000
"""DeepSpeed's default of reduce_bucket_size, in elements."""
CODE_BYTES = {"avx512f": 20, "avx2": 48}
"""Upper bound of generated code by instruction set, bytes per non-zero, both directions together."""


def state_bytes(model: ModelConfig, sparsity: SparsityConfig | None, layout: Layout) -> dict[str, int]:
    """Bytes of weights, masters, moments and gradients."""
    local = local_elements(model, sparsity, layout)
    stage, data = layout.zero_stage, layout.data
    count = local.parameters if stage == 0 else local.padded(data, layout.optimizer)
    single = (
        0 if layout.optimizer == "adamw" else local.matrices if stage == 0 else padded(local.matrices, data) // data
    )
    share = count if stage == 0 else count // data
    bucket = min(REDUCE_BUCKET, local.parameters)
    if stage == 3:
        share = -(-local.parameters // data)
        return {
            "weights": layout.value_bytes * (local.ends + 2 * local.layer),
            "masters": 4 * share,
            "moments": 8 * share,
            "gradients": 4 * share + (layout.value_bytes + 4) * max(local.layer, local.ends),
        }
    if layout.precision == "fp32":
        gradients = 4 * local.parameters if stage < 2 else 4 * (share + bucket)
    else:
        gradients = 2 * local.parameters + 4 * (count if stage < 2 else share)
    return {
        "weights": layout.value_bytes * count,
        "masters": 0 if stage == 0 else 4 * share,
        "moments": 8 * share - 4 * single,
        "gradients": gradients,
    }


def structure_bytes(
    model: ModelConfig, sparsity: SparsityConfig | None, layout: Layout, device: str, code_budget_mb: int = 1024
) -> dict[str, int]:
    """Bytes of masks, indices and generated code; on a CPU, the code of this machine's instruction set."""
    local = local_elements(model, sparsity, layout)
    present = cpu_features() if device == "cpu" else []
    code_bytes = next((CODE_BYTES[name] for name in CODE_BYTES if name in present), 0)
    code = min(code_bytes * local.nonzeros, code_budget_mb * 2**20)
    return {
        "masks": local.masked,
        "indices": -(-local.compressed // 8) + 4 * local.nonzeros,
        "code": code,
    }


def activations_of(model: ModelConfig) -> Activations:
    """Values that a layer of the model's family keeps per token."""
    kept: Activations = family_module(model.family, "architecture").activations(model)
    return kept


def layer_activation_bytes(model: ModelConfig, layout: Layout) -> int:
    """Bytes that one layer keeps for its backward pass, from the family's counts per token."""
    tokens, t = layout.micro_batch * model.seq_length, layout.tensor
    kept, own = activations_of(model), own_tokens(model, layout)
    dropped = 2 * model.hidden_size if model.dropout > 0 else 0  # one byte per value, after attention and the MLP
    values = 2 * model.hidden_size * tokens + 2 * kept.norm_values * own + kept.divided_values * tokens // t
    fp32 = 2 * kept.norm_fp32 * own + kept.divided_fp32 * tokens // t
    return layout.value_bytes * values + 4 * fp32 + dropped * own


def own_tokens(model: ModelConfig, layout: Layout) -> int:
    """Tokens of a micro-batch that a tensor rank holds outside the linear layers."""
    return layout.micro_batch * model.seq_length // (layout.tensor if layout.sequence else 1)


def activation_bytes(model: ModelConfig, layout: Layout, device: str = "cpu") -> dict[str, int]:
    """Bytes that one micro-batch holds at the end of its forward pass, by part.

    ``logits`` is the temporary buffer of the loss.
    """
    tokens, d, t = layout.micro_batch * model.seq_length, model.hidden_size, layout.tensor
    p = layout.value_bytes
    one, kept = layer_activation_bytes(model, layout), activations_of(model)
    layers = model.num_layers * one
    if layout.activation_checkpointing:
        # The inputs of all layers, and all tensors of one layer at a time.
        layers = model.num_layers * p * own_tokens(model, layout) * d + one
    rows = padded_vocab_size(model.vocab_size, t) // t
    on_gpu = device == "cuda"
    chunk = min(tokens, max(1, (LOGITS_CHUNK_CUDA if on_gpu else LOGITS_CHUNK) // rows)) * rows
    # A GPU with the whole vocabulary overwrites the logits with their gradient. Otherwise there is an fp32 copy.
    logit = p if on_gpu and t == 1 else 4 + (p if p < 4 else 0)
    return {
        "layers": layers,
        # The last norm, the gradient of its output, the token ids, and the positions of one sequence.
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
    longest: int | None = None,
) -> dict[str, int]:
    """Bytes of one rank by part, and their ``total``. Losses of the allocator are not included.

    ``longest`` is the number of tokens of the longest sequence; None: that of the model.
    """
    parts = state_bytes(model, sparsity, layout) | structure_bytes(model, sparsity, layout, device, code_budget_mb)
    sequence = replace(model, seq_length=longest or model.seq_length)
    parts["activations"] = sum(activation_bytes(sequence, layout, device).values())
    return parts | {"total": sum(parts.values())}
