"""Imports a Hugging Face model as a checkpoint, dense or pruned by a mask. It reads safetensors, never pickle."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spdf_dist.base.digests import file_digest
from spdf_dist.base.progress_bar import ProgressBar
from spdf_dist.checkpoint.hf_tokenizer import read_tokenizer
from spdf_dist.checkpoint.huggingface import CONFIG, HEAD, WEIGHTS, WEIGHTS_INDEX, hf_tensors, pointer_hint, read_json
from spdf_dist.checkpoint.manifest import Kind, global_shapes
from spdf_dist.checkpoint.packed_masks import PackedMasks
from spdf_dist.checkpoint.read import require_finite
from spdf_dist.checkpoint.write import new_folder, single_writer, whole
from spdf_dist.config.errors import SpdfError, UserError
from spdf_dist.config.load import LARGEST_INTEGER
from spdf_dist.config.schema import ModelConfig, SparsityConfig
from spdf_dist.config.validate import require, validate_model, validate_sparsity
from spdf_dist.model.architecture import FAMILIES, architecture_of, family_module
from spdf_dist.parallel.layout import TensorShard
from spdf_dist.sparsity.masks import BoolArray, MagnitudeScores, RandomMasks, logical_weights, select

MaskSource = Literal["random", "magnitude", "zeros"]
WEIGHT_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Types of stored weights. Other types belong to quantised models, whose values need their scales."""
ADAPTER = "adapter_config.json"
"""transformers adds the adapter of such a file, as of LoRA, to the model beside it."""

WRAPPERS = re.compile(r"(module\.|_orig_mod\.|_forward_module\.|_fsdp_wrapped_module\.|base_model\.model\.)+")
"""Prefixes of DistributedDataParallel, torch.compile, Lightning, FSDP and PEFT."""


class HfFolder:
    """The config and tensors of a model folder. Raises UserError if the model cannot be imported without changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise UserError(
                f"{folder} {what}: name the folder of a downloaded model (`hf download NAME --local-dir DIR`), with "
                f"{CONFIG} and {WEIGHTS}"
            )
        if (folder / ADAPTER).exists():
            raise UserError(
                f"{folder} holds an adapter ({ADAPTER}), which changes what the model computes: merge it first (peft's "
                "merge_and_unload), or remove it"
            )
        config = read_json(folder / CONFIG)
        self.model = model_of(config, folder / CONFIG)
        self.family = family_module(self.model.family, "hf")
        if other := self.family.other_dropouts(config):
            print(
                f"{folder / CONFIG}: the model has one dropout here, {self.model.dropout}; not imported: "
                + ", ".join(f"{key} {config.get(key)}" for key in other),
                file=sys.stderr,
            )
        self.stored = hf_tensors(architecture_of(self.model))
        self.files: dict[str, Any] = {}
        self.keys: dict[str, tuple[Path, str]] = {}
        for path in self.weight_files():
            try:
                self.files[path.name] = safe_open(path, framework="pt")
            except FileNotFoundError:
                raise UserError(f"{path} is missing, and {WEIGHTS_INDEX} names it; copy it too") from None
            except (SafetensorError, OSError) as error:
                hint = pointer_hint(path)
                raise UserError(f"{path} is not a safetensors file, or damaged: {hint}{error}") from None
            except RuntimeError as error:  # of torch, which maps the file into memory
                raise SpdfError(f"{path} cannot be read: {error}") from None
            for key in self.files[path.name].keys():  # noqa: SIM118 - not a dictionary
                name = key if key == HEAD or key.startswith(self.family.PREFIX) else self.family.PREFIX + key
                if name in self.keys:
                    other, its_key = self.keys[name]
                    raise UserError(f"{folder} holds {name} twice: as {its_key} in {other.name}, {key} in {path.name}")
                self.keys[name] = (path, key)
        self.check_head()
        self.check_names()

    def check_names(self) -> None:
        """Raise UserError for stored tensors that ``config.json`` does not describe."""
        buffers = re.compile(re.escape(self.family.PREFIX) + f"({self.family.BUFFERS})")
        extra = [name for name in self.keys if name not in self.stored and not buffers.fullmatch(name)]
        if not extra:
            return
        keys = sorted(self.keys[name][1] for name in extra)
        wrapper = WRAPPERS.match(keys[0])
        if wrapper and all(key.startswith(wrapper[0]) for _, key in self.keys.values()):
            raise UserError(
                f"{self.folder}: the name of each tensor begins with '{wrapper[0]}', as of a wrapped model; save the "
                "model inside the wrapper"
            )
        raise UserError(
            f"{self.folder}: {CONFIG} has no place for {len(extra)} of the tensors, as {', '.join(keys[:3])}; "
            "without them the model would compute something else"
        )

    def check_head(self) -> None:
        """If the output layer is tied to the word embedding, use the one of the two that is stored.

        Raises UserError if both are stored and differ.
        """
        if HEAD in self.stored or HEAD not in self.keys:
            return
        word = architecture_of(self.model).tensors["embedding.word"].hf_name
        head = self.keys.pop(HEAD)
        if word not in self.keys:
            self.keys[word] = head
        elif not torch.equal(self.read(*head), self.read(*self.keys[word])):
            raise UserError(
                f"{self.folder}: {HEAD} differs from {word}: only a model whose output layer is its word embedding "
                f"can be imported as {CONFIG} describes it"
            )

    def weight_files(self) -> list[Path]:
        """``model.safetensors``, or the shards in its index. Raises UserError."""
        if (self.folder / WEIGHTS).is_file():
            return [self.folder / WEIGHTS]
        if not (self.folder / WEIGHTS_INDEX).is_file():
            raise UserError(
                f"{self.folder} has no {WEIGHTS}; convert other formats with transformers' save_pretrained first"
            )
        weight_map = read_json(self.folder / WEIGHTS_INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise UserError(f"{self.folder / WEIGHTS_INDEX}: weight_map does not name a file for each tensor")
        names = sorted(set(weight_map.values()))
        if any(Path(name).name != name or name in ("", "..") for name in names):
            raise UserError(f"{self.folder / WEIGHTS_INDEX}: a shard lies outside the folder")
        return [self.folder / name for name in names]

    def read(self, path: Path, key: str) -> Tensor:
        """One stored tensor, converted to float32. Raises UserError if it is damaged or quantised."""
        try:
            content: Tensor = self.files[path.name].get_tensor(key)
        except SafetensorError as error:
            raise UserError(f"{path} is damaged: {key}: {error}") from None
        if content.dtype not in WEIGHT_TYPES:
            raise UserError(
                f"{path}: {key} is stored as {str(content.dtype).removeprefix('torch.')}: a quantised model cannot be "
                "imported; convert it to float32 or bfloat16 first"
            )
        return content.to(torch.float32)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Each global tensor with its name, float32, in this project's layout. Raises UserError for a wrong shape."""
        for name, parts in self.stored.items():
            if name not in self.keys:
                raise UserError(f"{self.folder}: no tensor {name}")
            path, key = self.keys[name]
            content = self.read(path, key)
            shape = list(content.shape)
            if parts[0].hf_transposed and content.dim() == 2:
                content = content.T
            rows = [part.shape[0] for part in parts]
            if tuple(content.shape) != (sum(rows), *parts[0].shape[1:]):
                raise UserError(f"{path}: {key} has shape {shape}, which does not fit {CONFIG}")
            for part, tensor in zip(parts, content.split(rows), strict=True):
                yield part.name, tensor.contiguous()


def model_of(config: dict[str, Any], path: Path) -> ModelConfig:
    """The architecture in a ``config.json``. Raises UserError if it is not supported."""
    family = config.get("model_type", "gpt2")
    if family not in FAMILIES:
        raise UserError(f"{path}: model_type is {family!r}; only {' and '.join(FAMILIES)} can be imported")
    if config.get("quantization_config"):
        raise UserError(f"{path}: quantization_config: a quantised model cannot be imported; dequantise it first")
    named, start = config.get("architectures") or [], family_module(family, "hf").NAMES
    if not isinstance(named, list) or not all(str(name).startswith(start) for name in named):
        raise UserError(f"{path}: architectures is {named!r:.80}: another model than model_type {family!r}")
    if config.get("auto_map"):
        raise UserError(
            f"{path}: auto_map: code in the folder computes this model; if it is a plain {family}, remove the key"
        )
    try:
        model: ModelConfig = family_module(family, "hf").model_config(config, path)
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]} is missing") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: {error}") from None
    validate_model(model)
    return model


def masks_by(source: HfFolder, mask: MaskSource, sparsity: SparsityConfig) -> Mapping[str, BoolArray]:
    """Masks that keep random entries, the entries of largest magnitude, or (`zeros`) all that are not zero.

    `zeros` gives masks only to matrices that hold zeros. Raises UserError if none does.
    """
    random = RandomMasks(source.model, sparsity)
    if mask == "random":
        return random
    if mask == "magnitude":
        return {
            name: select(random.weights[name], sparsity, MagnitudeScores(weight.numpy()))
            for name, weight in source.tensors()
            if name in random
        }
    names = logical_weights(source.model)
    found = {name: weight.numpy() != 0 for name, weight in source.tensors() if name in names}
    found = {name: kept for name, kept in found.items() if not kept.all()}
    if not found:
        raise UserError(f"{source.folder}: --mask zeros: no weight of its matrices is zero")
    return found


def import_hf(
    folder: Path,
    out: Path,
    level: float = 0.0,
    mask: MaskSource = "random",
    seed: int = SparsityConfig.seed,
    seq_length: int | None = None,
) -> int:
    """Write a Hugging Face model as the checkpoint folder ``out``, weights only, at step 0.

    Args:
        folder: the model folder.
        out: the checkpoint folder to write.
        level: sparsity to which the matrices of each layer are pruned; 0: the model stays dense.
        mask: `random` (the mask of a pre-training run with ``sparsity.seed`` = ``seed``), `magnitude` (the largest
            magnitudes of each matrix are kept) or `zeros` (entries that are exactly zero are pruned; ``level`` is 0).
        seed: seed of the random mask.
        seq_length: another context window in tokens, for models with rotary positions.

    Returns:
        The number of pruned weights.

    Raises:
        UserError: ``folder`` does not hold a supported model, or a weight is not finite; ``out`` exists and is not
            empty.
    """
    real = new_folder(out)
    source = HfFolder(folder)
    if seq_length is not None:
        if "embedding.position" in architecture_of(source.model).tensors:
            raise UserError("--seq-length: applies to rotary positions only; this model has learned ones")
        source.model = replace(source.model, seq_length=seq_length)
        validate_model(source.model)
    sparsity = SparsityConfig(level=level, seed=seed, targets=list(architecture_of(source.model).targets))
    validate_sparsity(sparsity)
    require(abs(seed) <= LARGEST_INTEGER, f"--seed {seed}: is too large")
    if mask == "zeros" and level > 0:
        raise UserError("--level: does not apply to --mask zeros, which keeps what is not zero")
    packed = PackedMasks.pack(masks_by(source, mask, sparsity))
    if mask == "zeros":
        entries = sum(record.shape[0] * record.shape[1] for record in packed.records.values())
        sparsity = replace(
            sparsity, level=round(1 - sum(record.kept for record in packed.records.values()) / entries, 6)
        )

    def shards() -> Iterator[tuple[Kind, TensorShard, Tensor]]:
        total = len(global_shapes(source.model))
        for name, tensor in ProgressBar(source.tensors(), "import", total, unit="tensor", leave=False):
            require_finite(tensor.numpy(), name, folder, "the model cannot be used")
            if name in packed:
                kept = torch.from_numpy(packed[name].copy())
                yield "model", whole(name, tensor, kept), tensor[kept]
            else:
                yield "model", whole(name, tensor), tensor

    with tempfile.TemporaryDirectory(prefix="spdf-", ignore_cleanup_errors=True) as tokenizer:
        has_tokenizer = read_tokenizer(folder, Path(tokenizer), source.model.vocab_size)
        single_writer(real, 0).write(
            shards(),
            masks=packed,
            config_yaml="",
            tokenizer=Path(tokenizer) if has_tokenizer else None,
            manifest={
                "kind": "imported",
                "model": asdict(source.model),
                "sparsity": asdict(sparsity) if len(packed) else None,
                "source": {
                    "files": {path.name: file_digest(path) for path in source.weight_files()},
                    "mask": mask if len(packed) else None,
                },
            },
        )
    return sum(record.shape[0] * record.shape[1] - record.kept for record in packed.records.values())
