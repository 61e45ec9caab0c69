"""GPT-2 in transformers: ``GPT2LMHeadModel`` and its ``config.json``. architecture.py has the names of its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import ModelConfig

CLASS_NAME = "GPT2LMHeadModel"
PREFIX = "transformer."
"""Prefix of every tensor name but that of the output layer. Folders of a model without output layer lack it."""
BUFFERS = r"h\.\d+\.attn\.(bias|masked_bias)"
"""Stored tensors that are not weights: causal masks."""
ACTIVATION = "gelu_new"
"""The name of GELU's tanh approximation in transformers."""
TANH_GELU = (ACTIVATION, "gelu_pytorch_tanh")
REQUIRED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
"""The values of a config that this project supports."""


def hf_config(model: ModelConfig) -> dict[str, Any]:
    """The content of ``config.json``, without dtype and special tokens."""
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
    """The architecture in a ``config.json``.

    Raises UserError for a variant of GPT-2 that is not supported, and KeyError for a missing key.
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
