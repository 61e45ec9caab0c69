"""Writes a checkpoint as a Hugging Face model folder, without the package transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spdf_dist.base.atomic_files import atomic_folder, remove_leftovers, sync, write_json
from spdf_dist.base.progress_bar import ProgressBar
from spdf_dist.checkpoint.hf_tokenizer import write_tokenizer
from spdf_dist.checkpoint.huggingface import CONFIG, WEIGHTS, WEIGHTS_INDEX, hf_tensors
from spdf_dist.checkpoint.model_card import model_card
from spdf_dist.checkpoint.read import Checkpoint, FloatArray, require_finite
from spdf_dist.checkpoint.stream import SafetensorsStream, header_room
from spdf_dist.checkpoint.write import describe, new_folder
from spdf_dist.config.errors import SpdfError
from spdf_dist.config.validate import one_of, require
from spdf_dist.data.tokenizer import load_tokenizer
from spdf_dist.model.architecture import architecture_of, family_module

METADATA = {"format": "pt"}
CARD = "README.md"
SHARD = "model-{:05d}-of-{:05d}.safetensors"
SHARD_BYTES = 5 * 10**9
"""Default size of the largest file in bytes, the same as that of transformers."""
ITEM_BYTES = {"float32": 4, "bfloat16": 2}


def export_hf(
    source: Path | str,
    out: Path,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    license_name: str | None = None,
) -> tuple[str, int]:
    """Write the weights of ``source``, pruned entries as zeros, its tokenizer and a model card to the folder ``out``.

    Args:
        source: a checkpoint, or a run folder.
        out: the folder to write.
        dtype: `float32`, or `bfloat16` (rounded to nearest).
        shard_bytes: larger models are divided into files of at most this size (unless one tensor is larger).
        license_name: identifier of the model's licence for the model card, such as ``apache-2.0``.

    Returns:
        The name of the transformers class for the folder, and the number of parameters written.

    Raises:
        UserError: ``source`` is not a complete checkpoint or has a weight that is not finite; ``out`` exists and is not
            empty; an argument is not valid.
        SpdfError: the folder cannot be written, for example on a full disk.
    """
    one_of("dtype", dtype, tuple(ITEM_BYTES))
    require(shard_bytes > 0, f"the size of a shard must be positive, got {shard_bytes} bytes")
    checkpoint = Checkpoint(source)
    family = family_module(checkpoint.model.family, "hf")
    real = new_folder(out)
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(real)
        with atomic_folder(real) as aside:
            count = write_weights(checkpoint, aside, dtype, shard_bytes)
            end = None
            if checkpoint.tokenizer_dir is not None:
                tokenizer = load_tokenizer(checkpoint.tokenizer_dir)
                end = tokenizer.eod_id
                write_tokenizer(tokenizer, checkpoint.tokenizer_dir, checkpoint.model.seq_length, aside)
            tokens = {"use_cache": True, "bos_token_id": end, "eos_token_id": end}
            kind = {"architectures": [family.CLASS_NAME], "model_type": checkpoint.model.family, "dtype": dtype}
            write_json(aside / CONFIG, kind | family.hf_config(checkpoint.model) | tokens, indent=2)
            write_json(aside / "generation_config.json", {"bos_token_id": end, "eos_token_id": end}, indent=2)
            (aside / CARD).write_text(model_card(checkpoint, license_name), encoding="utf-8")
            for path in aside.iterdir():
                sync(path)
    except OSError as error:
        raise SpdfError(f"{out} was not written: {describe(error)}") from error
    return family.CLASS_NAME, count


def write_weights(checkpoint: Checkpoint, folder: Path, dtype: str, shard_bytes: int) -> int:
    """Write ``model.safetensors``, or shards and their index, with one tensor in memory at a time.

    Returns the number of parameters written.
    """
    tensors = hf_tensors(architecture_of(checkpoint.model))
    sizes = {name: sum(part.numel for part in parts) for name, parts in tensors.items()}
    shards = divide({name: size * ITEM_BYTES[dtype] for name, size in sizes.items()}, shard_bytes)
    files = [WEIGHTS] if len(shards) == 1 else [SHARD.format(i + 1, len(shards)) for i in range(len(shards))]
    with ProgressBar(total=len(tensors), desc="export", unit="tensor", leave=False) as progress:
        for file, names in zip(files, shards, strict=True):
            with SafetensorsStream(folder / file, header_room(names, METADATA), METADATA) as stream:
                for name in names:
                    array = np.concatenate([read_finite(checkpoint, part.name) for part in tensors[name]])
                    stream.add(name, array.T if tensors[name][0].hf_transposed and array.ndim == 2 else array, dtype)
                    progress.update()
    if len(shards) > 1:
        total = sum(sizes.values())
        index = {
            "metadata": {"total_parameters": total, "total_size": total * ITEM_BYTES[dtype]},
            "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names},
        }
        write_json(folder / WEIGHTS_INDEX, index, indent=2)
    return sum(sizes.values())


def read_finite(checkpoint: Checkpoint, name: str) -> FloatArray:
    """The weights ``name`` with multipliers folded in. Raises UserError if one is not finite."""
    array = checkpoint.read_folded(name)
    require_finite(array, name, checkpoint.path)
    return array


def divide(sizes: dict[str, int], most: int) -> list[list[str]]:
    """Divide the names, in order, into groups of at most ``most`` bytes. A larger tensor has a group of its own."""
    shards: list[list[str]] = [[]]
    room = most
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= size
    return shards
