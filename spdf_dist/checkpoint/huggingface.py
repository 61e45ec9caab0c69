"""How the tensors of a Hugging Face ``GPT2LMHeadModel`` correspond to ours.

Its linears are ``Conv1D``: weights lie as [in, out], ours as [out, in]. ``c_attn`` is W_Q, W_K, W_V side by side, each
with its heads in order. The output layer is tied to the word embedding and is not stored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spdf_dist.config.errors import UserError

PREFIX = "transformer."
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
VOCABULARY, MERGES, SENTENCEPIECE = "vocab.json", "merges.txt", "tokenizer.model"
TOKENIZER = "tokenizer.json"
ACTIVATION = "gelu_new"
"""Their name of GELU's tanh approximation."""
LAYER_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class HfTensor:
    """A tensor there, and the global tensors that lie in it side by side along its last dimension."""

    name: str
    """Without the prefix, which some folders lack."""
    parts: tuple[str, ...]
    transposed: bool


def hf_tensors(num_layers: int) -> list[HfTensor]:
    """Every stored tensor, in order."""
    tensors = [
        HfTensor("wte.weight", ("embedding.word",), False),
        HfTensor("wpe.weight", ("embedding.position",), False),
    ]
    linears = {"attn.c_attn": "QKV", "attn.c_proj": "D", "mlp.c_fc": "I", "mlp.c_proj": "O"}
    for i in range(num_layers):
        ours, theirs = f"layers.{i}", f"h.{i}"
        for norm in ("ln_1", "ln_2"):
            for part in ("weight", "bias"):
                tensors.append(HfTensor(f"{theirs}.{norm}.{part}", (f"{ours}.{norm}.{part}",), False))
        for module, letters in linears.items():
            tensors.append(HfTensor(f"{theirs}.{module}.weight", tuple(f"{ours}.W_{x}" for x in letters), True))
            tensors.append(HfTensor(f"{theirs}.{module}.bias", tuple(f"{ours}.b_{x}" for x in letters), False))
    return tensors + [HfTensor(f"ln_f.{part}", (f"ln_f.{part}",), False) for part in ("weight", "bias")]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not valid JSON") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} is not a JSON object")
    return tree
