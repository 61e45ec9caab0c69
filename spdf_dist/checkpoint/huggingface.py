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


LFS_POINTER = b"version https://git-lfs"


def pointer_hint(path: Path) -> str:
    """A hint for messages if ``path`` is a pointer of git-lfs, which a clone without git-lfs leaves; else empty."""
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return ""
    return f"{path.name} is a git-lfs pointer: run `git lfs pull`, or download the file; " if is_pointer else ""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        hint = pointer_hint(path).removesuffix("; ")
        raise UserError(f"{path} is not valid JSON" + (f": {hint}" if hint else "")) from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} is not a JSON object")
    return tree
