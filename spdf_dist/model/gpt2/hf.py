"""GPT-2 in transformers: ``GPT2LMHeadModel`` and its ``config.json``. architecture.py has the names of its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import ModelConfig
from spdf_dist.model.hf_values import number, whole

CLASS_NAME = "GPT2LMHeadModel"
NAMES = "GPT2"
"""How the names of the classes begin."""
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
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
"""Other names of keys. transformers accepts both."""
DROPOUT = 0.1
"""The value of a dropout that a config leaves out."""


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
    sizes = dict(config)
    for alias, key in ALIASES.items():
        if alias in config and sizes.setdefault(key, config[alias]) != config[alias]:
            raise UserError(f"{path}: {key} is {sizes[key]!r} and {alias}, its other name, is {config[alias]!r}")
    return ModelConfig(
        num_layers=whole(sizes, "n_layer"),
        hidden_size=whole(sizes, "n_embd"),
        num_attention_heads=whole(sizes, "n_head"),
        ffn_hidden_size=None if config.get("n_inner") is None else whole(config, "n_inner"),
        seq_length=whole(sizes, "n_positions"),
        vocab_size=whole(config, "vocab_size"),
        dropout=number(config, "resid_pdrop", DROPOUT),
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
    )


def other_dropouts(config: dict[str, Any]) -> list[str]:
    """Keys of dropouts that differ from the one that is imported."""
    taken = config.get("resid_pdrop", DROPOUT)
    return [key for key in ("attn_pdrop", "embd_pdrop") if config.get(key, DROPOUT) != taken]
