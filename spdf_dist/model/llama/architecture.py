"""The tensors of Llama. Shapes: d hidden size, f MLP width, V vocabulary size, k key and value heads x head size.

    embedding.word [V, d]
    layers.{i}.ln_1.weight [d]    layers.{i}.W_Q|W_D [d, d]    layers.{i}.W_K|W_V [k, d]
    layers.{i}.ln_2.weight [d]    layers.{i}.W_G|W_I [f, d]    layers.{i}.W_O [d, f]
    ln_f.weight [d]               head.weight [V, d] if it is not tied to the word embedding

The MLP is W_O (silu(W_G x) * W_I x). Source: Touvron et al. (2023); Llama 3 (Dubey et al., 2024).
"""

from __future__ import annotations

import math

from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import ModelConfig
from spdf_dist.model.architecture import Activations, TensorSpec

STANDARD_DEVIATION = 0.02
"""Standard deviation of the initial weights. Residual outputs have it divided by sqrt(2 L), with L layers, as in
GPT-2."""

ROPE_THETA = 10_000.0
"""Default base of the rotary positions' wavelengths (Su et al., 2021)."""

LINEARS = {
    "W_Q": ("qkv", "self_attention.linear_qkv", "self_attn.q_proj"),
    "W_K": ("qkv", "self_attention.linear_qkv", "self_attn.k_proj"),
    "W_V": ("qkv", "self_attention.linear_qkv", "self_attn.v_proj"),
    "W_D": ("projection", "self_attention.linear_proj", "self_attn.o_proj"),
    "W_G": ("expand", "mlp.linear_fc1", "mlp.gate_proj"),
    "W_I": ("expand", "mlp.linear_fc1", "mlp.up_proj"),
    "W_O": ("contract", "mlp.linear_fc2", "mlp.down_proj"),
}
"""For each matrix: the linear that it is stacked in, its module in the training model, its module in transformers."""


def validate(model: ModelConfig) -> None:
    """Raise UserError for values with which rotary positions are not defined."""
    if model.head_size % 2:
        raise UserError(
            f"model.num_attention_heads: rotary positions need heads of even size, not {model.head_size} "
            f"({model.hidden_size} / {model.num_attention_heads})"
        )
    if model.rope_theta is not None and not 0 < model.rope_theta < math.inf:
        raise UserError(f"model.rope_theta: must be positive and finite, got {model.rope_theta}")
    scaling = model.rope_scaling
    if scaling is None:
        return
    for key in ("factor", "low_freq_factor", "original_max_position_embeddings"):
        if not 0 < getattr(scaling, key) < math.inf:
            raise UserError(f"model.rope_scaling.{key}: must be positive and finite, got {getattr(scaling, key)}")
    if not scaling.low_freq_factor < scaling.high_freq_factor < math.inf:
        raise UserError(
            f"model.rope_scaling.high_freq_factor: must be more than low_freq_factor {scaling.low_freq_factor}, "
            f"got {scaling.high_freq_factor}"
        )


def norm(ours: str, path: str, theirs: str, width: int) -> TensorSpec:
    """The weight of one RMS norm."""
    return TensorSpec(
        name=f"{ours}.weight",
        shape=(width,),
        role="norm",
        part="norms",
        parameter=f"decoder.{path}.weight",
        hf_name=f"model.{theirs}.weight",
        initial_mean=1.0,
    )


def linear(layer: int, name: str, shape: tuple[int, int], residual_std: float) -> TensorSpec:
    """One matrix. Tensor ranks divide the inputs of residual outputs, otherwise the outputs."""
    stack, path, theirs = LINEARS[name]
    row_parallel = name in ("W_D", "W_O")
    return TensorSpec(
        name=f"layers.{layer}.{name}",
        shape=shape,
        role="residual_output" if row_parallel else "hidden",
        part=name,
        parameter=f"decoder.layers.{layer}.{path}.weight",
        hf_name=f"model.layers.{layer}.{theirs}.weight",
        stack=stack,
        shard_dim=1 if row_parallel else 0,
        prunable=True,
        initial_std=residual_std if row_parallel else STANDARD_DEVIATION,
        flops_part=name.removeprefix("W_"),
    )


def vocabulary(name: str, path: str, theirs: str, model: ModelConfig, *, multiplied: bool) -> TensorSpec:
    """The word embedding or the output layer, [V, d]. ``multiplied``: whether logits are computed with it."""
    return TensorSpec(
        name=name,
        shape=(model.vocab_size, model.hidden_size),
        role="head" if name == "head.weight" else "embedding",
        part="output_head" if name == "head.weight" else "word_embedding",
        parameter=path,
        hf_name=theirs,
        shard_dim=0,
        padded=True,
        initial_std=STANDARD_DEVIATION,
        flops_part="logits" if multiplied else None,
    )


def tensors(model: ModelConfig) -> list[TensorSpec]:
    """All tensors of the model, in the order of checkpoints."""
    d, f, k = model.hidden_size, model.ffn, model.key_value_heads * model.head_size
    shapes = {"W_Q": (d, d), "W_K": (k, d), "W_V": (k, d), "W_D": (d, d), "W_G": (f, d), "W_I": (f, d), "W_O": (d, f)}
    residual_std = STANDARD_DEVIATION / math.sqrt(2 * model.num_layers)
    word = "embedding.word_embeddings.weight"
    table = [vocabulary("embedding.word", word, "model.embed_tokens.weight", model, multiplied=model.tie_embeddings)]
    for i in range(model.num_layers):
        matrices = [linear(i, name, shape, residual_std) for name, shape in shapes.items()]
        table.append(norm(f"layers.{i}.ln_1", f"layers.{i}.input_layernorm", f"layers.{i}.input_layernorm", d))
        table += matrices[:4]
        table.append(
            norm(f"layers.{i}.ln_2", f"layers.{i}.pre_mlp_layernorm", f"layers.{i}.post_attention_layernorm", d)
        )
        table += matrices[4:]
    table.append(norm("ln_f", "final_layernorm", "norm", d))
    if not model.tie_embeddings:
        table.append(vocabulary("head.weight", "output_layer.weight", "lm_head.weight", model, multiplied=True))
    return table


def activations(model: ModelConfig) -> Activations:
    """The activations that the backward pass needs, per token.

    On a CPU, torch's RMS norm keeps its input and the normalised input in fp32. A fused kernel on a GPU keeps less, so
    this is an upper bound there. The tables of the rotary positions are not counted.
    """
    d, k = model.hidden_size, model.key_value_heads * model.head_size
    return Activations(
        norm_values=0,
        norm_fp32=2 * d + 1,
        # Q, K, V; rotated Q and K; the attention's output; the gate, W_I x, the activated gate and their product.
        divided_values=3 * d + 3 * k + 4 * model.ffn,
        divided_fp32=model.num_attention_heads,  # log-sum-exp of the attention scores
    )
