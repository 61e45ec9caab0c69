"""File names of a Hugging Face model folder. The family's ``architecture.py`` lists its tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spdf_dist.config.errors import UserError
from spdf_dist.model.architecture import Architecture, TensorSpec

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
VOCABULARY, MERGES, SENTENCEPIECE = "vocab.json", "merges.txt", "tokenizer.model"
HEAD = "lm_head.weight"
"""The output layer. If it is tied to the word embedding, folders hold both tensors, or either."""


def hf_tensors(architecture: Architecture) -> dict[str, list[TensorSpec]]:
    """The global tensors that each stored tensor holds, by its name, concatenated along the output dimension."""
    found: dict[str, list[TensorSpec]] = {}
    for tensor in architecture.tensors.values():
        found.setdefault(tensor.hf_name, []).append(tensor)
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not valid JSON") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} is not a JSON object")
    return tree
