"""Llama in transformers: ``LlamaForCausalLM`` and its ``config.json``. architecture.py has the names of its tensors."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import ModelConfig, RopeScaling
from spdf_dist.model.hf_values import flag, number, whole
from spdf_dist.model.llama.architecture import ROPE_THETA

CLASS_NAME = "LlamaForCausalLM"
NAMES = "Llama"
"""How the names of the classes begin."""
PREFIX = "model."
"""Prefix of every tensor name but that of the output layer. Folders of a model without output layer lack it."""
BUFFERS = r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq|rotary_emb\.inv_freq"
"""Stored tensors that are not weights."""
LENGTH = "original_max_position_embeddings"
"""The key of the context window before rotary positions were scaled."""
REQUIRED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
"""The values of a config that this project supports."""


def hf_config(model: ModelConfig) -> dict[str, Any]:
    """The content of ``config.json``, without dtype and special tokens.

    Rotary positions are in the form of transformers 4, which transformers 5 can read too.
    """
    scaling = None if model.rope_scaling is None else {"rope_type": "llama3", **asdict(model.rope_scaling)}
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.key_value_heads,
        "head_dim": model.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": model.seq_length,
        "initializer_range": 0.02,
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        "rope_theta": model.rope_theta or ROPE_THETA,
        "rope_scaling": scaling,
        "attention_bias": False,
        "attention_dropout": model.dropout,
        "mlp_bias": False,
        "pretraining_tp": 1,
    }


def model_config(config: dict[str, Any], path: Path) -> ModelConfig:
    """The architecture in a ``config.json``.

    Raises UserError for a variant of Llama that is not supported, and KeyError for a missing key.
    """
    for key, expected in REQUIRED.items():
        if config.get(key, expected) != expected:
            raise UserError(f"{path}: {key} is {config[key]!r}; only {expected!r} can be imported")
    hidden, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
    if config.get("head_dim") is not None and whole(config, "head_dim") * heads != hidden:
        raise UserError(f"{path}: head_dim is {config['head_dim']}; only hidden_size / num_attention_heads is known")
    theta, scaling = rotary_config(config, path)
    return ModelConfig(
        family="llama",
        num_layers=whole(config, "num_hidden_layers"),
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=None if config.get("num_key_value_heads") is None else whole(config, "num_key_value_heads"),
        ffn_hidden_size=whole(config, "intermediate_size"),
        seq_length=whole(config, "max_position_embeddings"),
        vocab_size=whole(config, "vocab_size"),
        dropout=0.0 if config.get("attention_dropout") is None else number(config, "attention_dropout", 0.0),
        norm_eps=number(config, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_embeddings=flag(config, "tie_word_embeddings", False),
    )


def other_dropouts(config: dict[str, Any]) -> list[str]:
    """Keys of dropouts that differ from the one that is imported. A Llama has a single dropout."""
    return []


def rotary_config(config: dict[str, Any], path: Path) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the rotary positions, from the keys of transformers 4 (two keys) or 5 (one key).

    Raises UserError for a kind of scaling that is not supported.
    """
    new, old = config.get("rope_parameters"), config.get("rope_scaling")
    if new and old and new != old:
        raise UserError(f"{path}: rope_parameters and rope_scaling differ; keep one of them")
    found: Any = new or old or {}
    if not isinstance(found, dict):
        raise UserError(f"{path}: {'rope_parameters' if new else 'rope_scaling'} is not an object: {found!r:.60}")
    theta = number(found if "rope_theta" in found else config, "rope_theta", ROPE_THETA)
    kind = found.get("rope_type", found.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(f"{path}: rope_type is {kind!r}; only 'default' and 'llama3' can be imported")
    # transformers 5 prefers the length beside the object, and transformers 4 the one inside.
    original = {**config, **found}
    if original.get(LENGTH) != config.get(LENGTH, original.get(LENGTH)):
        raise UserError(f"{path}: {LENGTH} is {config[LENGTH]!r} and, for the rotary positions, {found[LENGTH]!r}")
    scaling = {field.name: found[field.name] for field in fields(RopeScaling) if field.name != LENGTH}
    return theta, RopeScaling(
        **{key: number(scaling, key, 0.0) for key in scaling}, original_max_position_embeddings=whole(original, LENGTH)
    )
