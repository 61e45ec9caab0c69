"""A small GPT with random weights, as a decoder and as transformers' model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spdf_dist.checkpoint.manifest import global_shapes
from spdf_dist.config.schema import ModelConfig
from spdf_dist.evaluation.decoder import Decoder


def random_weights(model: ModelConfig, seed: int, scale: float = 0.3) -> dict[str, Tensor]:
    """Random weights, large enough that the model prefers some tokens clearly."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(shape, generator=generator) * (scale if len(shape) == 2 else 0.1)
        for name, shape in global_shapes(model).items()
    }
    for name, tensor in weights.items():
        if "ln_" in name and name.endswith("weight"):
            tensor += 1
    return weights


def make_decoder(model: ModelConfig, weights: dict[str, Tensor]) -> Decoder:
    return Decoder(model, weights)


def transformers_model(model: ModelConfig, weights: dict[str, Tensor]) -> Any:
    """GPT2LMHeadModel with the same weights. It stores linear layers transposed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=model.vocab_size,
        n_positions=model.seq_length,
        n_embd=model.hidden_size,
        n_layer=model.num_layers,
        n_head=model.num_attention_heads,
        n_inner=model.ffn,
        activation_function="gelu_new",
        layer_norm_epsilon=1e-5,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    state = {
        "transformer.wte.weight": weights["embedding.word"],
        "transformer.wpe.weight": weights["embedding.position"],
    }
    state["lm_head.weight"] = weights["embedding.word"]
    for i in range(model.num_layers):
        ours, theirs = f"layers.{i}.", f"transformer.h.{i}."
        for part in ("weight", "bias"):
            for name in ("ln_1", "ln_2"):
                state[f"{theirs}{name}.{part}"] = weights[f"{ours}{name}.{part}"]
        state[f"{theirs}attn.c_attn.weight"] = torch.cat([weights[f"{ours}W_{x}"] for x in "QKV"]).T.contiguous()
        state[f"{theirs}attn.c_attn.bias"] = torch.cat([weights[f"{ours}b_{x}"] for x in "QKV"])
        for their_name, our_name in (("attn.c_proj", "D"), ("mlp.c_fc", "I"), ("mlp.c_proj", "O")):
            state[f"{theirs}{their_name}.weight"] = weights[f"{ours}W_{our_name}"].T.contiguous()
            state[f"{theirs}{their_name}.bias"] = weights[f"{ours}b_{our_name}"]
    for part in ("weight", "bias"):
        state[f"transformer.ln_f.{part}"] = weights[f"ln_f.{part}"]
    network = GPT2LMHeadModel(config)
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected and not [name for name in missing if "attn.bias" not in name]
    return network.eval()
