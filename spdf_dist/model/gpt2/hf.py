"""GPT-2 at Hugging Face: ``GPT2LMHeadModel`` and its ``config.json``. The names of its tensors are in the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import ModelConfig

CLASS_NAME = "GPT2LMHeadModel"
PREFIX = "transformer."
"""Of every tensor but the head's. Folders of the model without a head lack it."""
BUFFERS = r"h\.\d+\.attn\.(bias|masked_bias)"
"""Stored tensors that are not weights: the causal mask."""
ACTIVATION = "gelu_new"
"""Their name of GELU's tanh approximation."""
TANH_GELU = (ACTIVATION, "gelu_pytorch_tanh")
REQUIRED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
"""What our model computes; a folder that says otherwise is another model."""


def hf_config(model: ModelConfig) -> dict[str, Any]:
    """``config.json`` without dtype and special tokens."""
    return {
        "vocab_size": model.vocab_size,
        "n_positions": model.seq_length,
        "n_ctx": model.seq_length,
        "n_embd": model.hidden_size,
        "n_layer": model.num_layers,
        "n_head": model.num_attention_heads,
        "n_inner": model.ffn,
        "activation_function": ACTIVATION,
        "layer_norm_epsilon": model.norm_eps,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "resid_pdrop": model.dropout,
        "embd_pdrop": model.dropout,
        "attn_pdrop": model.dropout,
        "tie_word_embeddings": True,
    }


def model_config(config: dict[str, Any], path: Path) -> ModelConfig:
    """The architecture in a ``config.json``; KeyError for a key that is missing.

    Raises UserError when it is not the GPT-2 that we compute.
    """
    for key, expected in REQUIRED.items():
        if config.get(key, expected) != expected:
            raise UserError(f"{path}: {key} is {config[key]!r}; only {expected!r} can be imported")
    if config.get("activation_function", ACTIVATION) not in TANH_GELU:
        raise UserError(f"{path}: activation_function is {config['activation_function']!r}, not {ACTIVATION}")
    return ModelConfig(
        num_layers=int(config["n_layer"]),
        hidden_size=int(config["n_embd"]),
        num_attention_heads=int(config["n_head"]),
        ffn_hidden_size=None if config.get("n_inner") is None else int(config["n_inner"]),
        seq_length=int(config["n_positions"]),
        vocab_size=int(config["vocab_size"]),
        dropout=float(config.get("resid_pdrop", 0.0)),
        norm_eps=float(config.get("layer_norm_epsilon", 1e-5)),
    )
