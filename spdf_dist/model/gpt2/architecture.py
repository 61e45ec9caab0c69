"""The tensors of GPT-2. Shapes: d hidden size, f MLP width, V vocabulary size, T context window.

    embedding.word [V, d]          embedding.position [T, d]
    layers.{i}.ln_1.weight|bias    layers.{i}.W_Q|W_K|W_V|W_D [d, d]    layers.{i}.b_Q|b_K|b_V|b_D [d]
    layers.{i}.ln_2.weight|bias    layers.{i}.W_I [f, d] b_I [f]        layers.{i}.W_O [d, f] b_O [d]
    ln_f.weight|bias

Hugging Face stores linears as ``Conv1D`` with weights [in, out]; here weights are [out, in]. Its ``c_attn`` is the
concatenation of W_Q, W_K and W_V. The output layer is tied to the word embedding and is not stored.
"""

from __future__ import annotations

import math

from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import ModelConfig
from spdf_dist.model.architecture import Activations, TensorSpec

STANDARD_DEVIATION = 0.02
"""Standard deviation of the initial weights (Radford et al., 2019). Residual outputs have it divided by sqrt(2 L), with
L layers."""


def validate(model: ModelConfig) -> None:
    """Raise UserError if a key that GPT-2 does not have is set."""
    absent = {"num_key_value_heads": None, "rope_theta": None, "rope_scaling": None, "tie_embeddings": True}
    for key, value in absent.items():
        if getattr(model, key) != value:
            raise UserError(f"model.{key}: model.family gpt2 has no such choice; leave the key out")


def norm(ours: str, path: str, theirs: str, width: int) -> list[TensorSpec]:
    """Weight and bias of one layer norm."""
    return [
        TensorSpec(
            name=f"{ours}.{part}",
            shape=(width,),
            role="norm",
            part="norms",
            parameter=f"{path}.{part}",
            hf_name=f"transformer.{theirs}.{part}",
            initial_mean=mean,
        )
        for part, mean in (("weight", 1.0), ("bias", 0.0))
    ]


def linear(
    layer: int, letter: str, shape: tuple[int, int], stack: str, path: str, theirs: str, std: float
) -> list[TensorSpec]:
    """Weight and bias of one logical linear. Tensor ranks divide the inputs of residual outputs, otherwise outputs."""
    row_parallel = letter in "DO"
    return [
        TensorSpec(
            name=f"layers.{layer}.W_{letter}",
            shape=shape,
            role="residual_output" if row_parallel else "hidden",
            part=f"W_{letter}",
            parameter=f"decoder.layers.{layer}.{path}.weight",
            hf_name=f"transformer.h.{layer}.{theirs}.weight",
            hf_transposed=True,
            stack=stack,
            shard_dim=1 if row_parallel else 0,
            prunable=True,
            initial_std=std,
            flops_part=letter,
        ),
        TensorSpec(
            name=f"layers.{layer}.b_{letter}",
            shape=shape[:1],
            role="bias",
            part="biases",
            parameter=f"decoder.layers.{layer}.{path}.bias",
            hf_name=f"transformer.h.{layer}.{theirs}.bias",
            stack=stack,
            shard_dim=None if row_parallel else 0,
        ),
    ]


def tensors(model: ModelConfig) -> list[TensorSpec]:
    """All tensors of the model, in the order of checkpoints."""
    d, f = model.hidden_size, model.ffn
    residual_std = STANDARD_DEVIATION / math.sqrt(2 * model.num_layers)
    table = [
        TensorSpec(
            name="embedding.word",
            shape=(model.vocab_size, d),
            role="embedding",
            part="word_embedding",
            parameter="embedding.word_embeddings.weight",
            hf_name="transformer.wte.weight",
            shard_dim=0,
            padded=True,
            initial_std=STANDARD_DEVIATION,
            flops_part="logits",
        ),
        TensorSpec(
            name="embedding.position",
            shape=(model.seq_length, d),
            role="embedding",
            part="position_embedding",
            parameter="embedding.position_embeddings.weight",
            hf_name="transformer.wpe.weight",
            initial_std=STANDARD_DEVIATION,
        ),
    ]
    for i in range(model.num_layers):
        pairs = [
            linear(i, letter, (d, d), "qkv", "self_attention.linear_qkv", "attn.c_attn", STANDARD_DEVIATION)
            for letter in "QKV"
        ]
        pairs.append(linear(i, "D", (d, d), "projection", "self_attention.linear_proj", "attn.c_proj", residual_std))
        table += norm(f"layers.{i}.ln_1", f"decoder.layers.{i}.input_layernorm", f"h.{i}.ln_1", d)
        table += [weight for weight, _ in pairs] + [bias for _, bias in pairs]
        table += norm(f"layers.{i}.ln_2", f"decoder.layers.{i}.pre_mlp_layernorm", f"h.{i}.ln_2", d)
        table += linear(i, "I", (f, d), "expand", "mlp.linear_fc1", "mlp.c_fc", STANDARD_DEVIATION)
        table += linear(i, "O", (d, f), "contract", "mlp.linear_fc2", "mlp.c_proj", residual_std)
    return table + norm("ln_f", "decoder.final_layernorm", "ln_f", d)


def activations(model: ModelConfig) -> Activations:
    """The activations that the backward pass needs, per token."""
    return Activations(
        norm_values=model.hidden_size,  # the norm's input
        norm_fp32=2,  # mean and reciprocal standard deviation
        # Q, K, V and the attention's output; the hidden layer before and after GELU.
        divided_values=4 * model.hidden_size + 2 * model.ffn,
        divided_fp32=model.num_attention_heads,  # log-sum-exp of the attention scores
    )
