"""Writes a checkpoint as a Hugging Face ``GPT2LMHeadModel`` folder; needs no transformers."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from spdf_dist.base.atomic_files import sync
from spdf_dist.checkpoint.find import ASIDE
from spdf_dist.checkpoint.hf_tokenizer import write_tokenizer
from spdf_dist.checkpoint.huggingface import ACTIVATION, CONFIG, LAYER_NORM_EPSILON, PREFIX, WEIGHTS, hf_tensors
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.checkpoint.stream import SafetensorsStream, header_room
from spdf_dist.checkpoint.write import describe, new_folder, remove
from spdf_dist.config.errors import SpdfError
from spdf_dist.config.schema import ModelConfig
from spdf_dist.data.tokenizer import load_tokenizer

METADATA = {"format": "pt"}


def export_hf(source: Path | str, out: Path) -> int:
    """Write the weights of ``source``, float32, pruned entries as zeros, and its tokenizer to the folder ``out``.

    Returns the number of parameters written.

    Raises:
        UserError: ``source`` is no whole checkpoint; ``out`` exists and is not empty.
        SpdfError: the disk is full, or does not take it.
    """
    checkpoint = Checkpoint(source)
    real = new_folder(out)
    aside = real.with_name(f".{real.name}.export{ASIDE}")
    try:
        remove(aside)
        aside.mkdir(parents=True)
        count = write_weights(checkpoint, aside / WEIGHTS)
        end = None
        if checkpoint.tokenizer_dir is not None:
            tokenizer = load_tokenizer(checkpoint.tokenizer_dir)
            end = tokenizer.eod_id
            write_tokenizer(tokenizer, checkpoint.tokenizer_dir, checkpoint.model.seq_length, aside)
        write_json(aside / CONFIG, hf_config(checkpoint.model, end))
        write_json(aside / "generation_config.json", {"bos_token_id": end, "eos_token_id": end})
        for path in aside.iterdir():
            sync(path)
        aside.rename(real)
    except OSError as error:
        raise SpdfError(f"{out} was not written: {describe(error)}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return count


def write_weights(checkpoint: Checkpoint, path: Path) -> int:
    """``model.safetensors``, one tensor in memory at a time."""
    tensors = hf_tensors(checkpoint.model.num_layers)
    count = 0
    with SafetensorsStream(path, header_room((PREFIX + t.name for t in tensors), METADATA), METADATA) as stream:
        for tensor in tqdm(tensors, desc="export", unit="tensor", leave=False, disable=None):
            arrays = [checkpoint.read_array(part) for part in tensor.parts]
            array = np.concatenate([a.T if tensor.transposed else a for a in arrays], axis=-1)
            stream.add(PREFIX + tensor.name, array)
            count += math.prod(array.shape)
    return count


def hf_config(model: ModelConfig, end: int | None) -> dict[str, Any]:
    """``config.json``; ``end`` is the id that ends documents, and begins them."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "dtype": "float32",
        "vocab_size": model.vocab_size,
        "n_positions": model.seq_length,
        "n_ctx": model.seq_length,
        "n_embd": model.hidden_size,
        "n_layer": model.num_layers,
        "n_head": model.num_attention_heads,
        "n_inner": model.ffn,
        "activation_function": ACTIVATION,
        "layer_norm_epsilon": LAYER_NORM_EPSILON,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "resid_pdrop": model.dropout,
        "embd_pdrop": model.dropout,
        "attn_pdrop": model.dropout,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": end,
        "eos_token_id": end,
    }


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """A JSON file for people and programs."""
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
