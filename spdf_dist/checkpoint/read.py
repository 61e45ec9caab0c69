"""Reads checkpoints: whole tensors, or the slice that a rank of any topology needs, one tensor at a time.

Files are memory-mapped, and a file's digest is checked when it is first used. A rank therefore reads and checks only
the files that hold its slices. torch is imported only where a tensor is returned, so `spdf inspect` works without it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from spdf_dist.base.digests import file_digest
from spdf_dist.checkpoint.find import is_whole, latest, resolve
from spdf_dist.checkpoint.manifest import (
    CONFIG,
    MASKS,
    TOKENIZER,
    Kind,
    Slice,
    StoredTensor,
    global_shapes,
    has_kind,
    key_of,
    optimizer_of,
    problem,
    read_manifest,
)
from spdf_dist.checkpoint.packed_masks import unpack
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import ModelConfig
from spdf_dist.data.tokenizer import GPT2_FILES, SENTENCEPIECE_FILE
from spdf_dist.data.tokenizer_json import CONFIG_FILE as TOKENIZER_CONFIG
from spdf_dist.model.architecture import architecture_of
from spdf_dist.sparsity.masks import BoolArray, mask_digest

if TYPE_CHECKING:
    from torch import Tensor

    from spdf_dist.parallel.layout import TensorShard

__all__ = ["Checkpoint", "is_whole", "latest", "resolve"]

FloatArray = NDArray[np.float32]


class Checkpoint:
    """A complete checkpoint, opened for reading.

    Args:
        path: a ``step_N`` folder, or a run folder or its ``checkpoints``, of which the newest complete one is used.

    Raises:
        UserError: there is none, it is incomplete or of an unknown version, or it is sparse without its masks.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = resolve(path)
        self.manifest = read_manifest(self.path)
        self.step = self.manifest.step
        self.model = self.manifest.model
        self.sparsity = self.manifest.sparsity
        self.parameterization = self.manifest.parameterization
        self.optimizer = optimizer_of(self.manifest.optimizer)
        self.files = StoredFiles(self.path, {name: file.sha256 for name, file in self.manifest.files.items()})
        self.masks: Mapping[str, BoolArray] = StoredMasks(self)
        shapes = {name: tensor.shape for name, tensor in self.manifest.tensors.items()}
        if shapes != global_shapes(self.model):
            raise UserError(f"{self.path} is damaged: its tensors are not those of its model")
        for tensor in self.manifest.tensors.values():
            if tensor.sparse and (tensor.name not in self.manifest.masks or MASKS not in self.manifest.files):
                raise UserError(f"{self.path}: the masks are missing: {tensor.name} is sparse and has none")

    @functools.cached_property
    def tokenizer_dir(self) -> Path | None:
        """The tokenizer's folder, for ``spdf_dist.data.tokenizer.load_tokenizer``; None if the checkpoint has none.

        Raises UserError if a file is damaged, or if a file that was added later would be loaded instead.
        """
        folder = self.path / TOKENIZER
        listed = [name for name in self.manifest.files if name.startswith(f"{TOKENIZER}/")]
        for name in listed:
            self.files.check(name)
        # `load_tokenizer` would use these files, if the folder held them, instead of or together with the listed ones.
        used = [SENTENCEPIECE_FILE, *GPT2_FILES, TOKENIZER_CONFIG] if listed else []
        for name in used:
            if f"{TOKENIZER}/{name}" in listed:
                break
            if (folder / name).exists():
                raise UserError(f"{folder / name} does not belong to the checkpoint: remove it")
        return folder if listed else None

    @property
    def config_yaml(self) -> str:
        """The resolved config of the run that saved the checkpoint, or empty. Raises UserError if it is damaged."""
        if CONFIG not in self.manifest.files:
            return ""
        self.files.check(CONFIG)
        return (self.path / CONFIG).read_text(encoding="utf-8")

    def verify(self) -> None:
        """Read every file and raise UserError for the first that is damaged."""
        reason = problem(self.path)
        if reason is not None:
            raise UserError(reason)
        for name in self.manifest.files:
            self.files.check(name)

    def has(self, kind: Kind) -> bool:
        """Whether weights (`model`) or all the optimizer's moments of this kind are stored."""
        specs = architecture_of(self.model).tensors
        tensors = self.manifest.tensors.values()
        return all(kind in t.slices for t in tensors if has_kind(kind, specs[t.name], self.optimizer))

    def check_model(self, model: ModelConfig) -> None:
        """Raise UserError, with the keys that differ, unless ``model`` has this checkpoint's architecture."""
        ours, theirs = (
            asdict(m) | {"ffn_hidden_size": m.ffn, "num_key_value_heads": m.key_value_heads}
            for m in (self.model, model)
        )
        ignored = {"dropout"}
        if "embedding.position" not in architecture_of(self.model).tensors:  # then no weight's shape depends on it
            ignored.add("seq_length")
        differing = [
            f"model.{key} is {ours[key]} in the checkpoint and {theirs[key]} in the config"
            for key in ours
            if key not in ignored and ours[key] != theirs[key]
        ]
        if differing:
            raise UserError(f"{self.path} is of another architecture: {'; '.join(differing)}")

    def read_array(self, name: str, kind: Kind = "model") -> FloatArray:
        """A global tensor, dense, float32; pruned entries are zero.

        Raises UserError if it is not stored or its files are damaged.
        """
        tensor = self._tensor(name, kind)
        return self._assemble(tensor, kind, None, 0, 0)

    def read_folded(self, name: str) -> FloatArray:
        """``read_array`` of weights into which the parameterization's multipliers are folded.

        They compute the same function in programs without multipliers, such as generation and transformers. Raises
        UserError as ``read_array`` does.
        """
        array, factor = self.read_array(name), self.folding.get(name)
        return array if factor is None else array * np.float32(factor)

    @functools.cached_property
    def folding(self) -> dict[str, float]:
        """The factors of ``read_folded`` by tensor; empty for the standard parameterization."""
        return self.parameterization.folding(architecture_of(self.model))

    def read_values(self, name: str, kind: Kind = "model") -> Iterator[FloatArray]:
        """The stored slices of a tensor, float32. Those of a sparse tensor are [nnz]; the mask must keep as many."""
        tensor = self._tensor(name, kind)
        for part in tensor.slices[kind]:
            yield self._values(tensor, kind, part) if tensor.sparse else self._dense(tensor, kind, part)

    def read(self, name: str, kind: Kind = "model") -> Tensor:
        """The result of ``read_array`` as a tensor on the CPU."""
        import torch

        return torch.from_numpy(self.read_array(name, kind))

    def weights(self) -> dict[str, Tensor]:
        """Every tensor by name, as ``read_folded`` returns it, on the CPU: the dense model."""
        import torch

        return {name: torch.from_numpy(self.read_folded(name)) for name in self.manifest.tensors}

    def read_shard(self, shard: TensorShard, kind: Kind = "model") -> Tensor:
        """A rank's slice of a global tensor, float32 on the CPU.

        The result is dense, of ``shard.local_shape``, or, if the shard has a mask, its kept values [nnz]. For a shard
        without a mask, a sparse tensor is expanded to dense; this densifies a model on load.

        Raises:
            UserError: the shape or the mask is not that of the checkpoint, a shard of a dense tensor has a mask, or the
                moments are not stored.
        """
        import torch

        tensor = self._tensor(shard.name, kind)
        if tensor.shape != tuple(shard.shape):
            raise UserError(
                f"{self.path} is of another architecture: {shard.name} is {list(tensor.shape)} there and "
                f"{list(shard.shape)} in this model"
            )
        mask = shard.mask
        if mask is not None:
            self._check_mask(tensor, shard, mask)
            for part in tensor.slices[kind]:
                if (part.dim, part.start, part.stop) == (shard.dim, shard.start, shard.stop) or (
                    part.dim is None and shard.dim is None
                ):
                    return torch.from_numpy(self._values(tensor, kind, part))
        dense = torch.from_numpy(self._assemble(tensor, kind, shard.dim, shard.start, shard.stop))
        return dense if mask is None else dense[mask.cpu()]

    def _tensor(self, name: str, kind: Kind) -> StoredTensor:
        """The manifest's entry of a tensor. Raises UserError unless this kind of it is stored."""
        tensor = self.manifest.tensors.get(name)
        if tensor is None:
            raise UserError(f"{self.path} holds no tensor {name}: it is of another architecture")
        if kind not in tensor.slices:
            raise UserError(f"{self.path} holds no {kind} of {name}: it is a {self.manifest.kind} checkpoint")
        return tensor

    def _check_mask(self, tensor: StoredTensor, shard: TensorShard, mask: Tensor) -> None:
        """Raise UserError unless the shard's mask is the checkpoint's."""
        if not tensor.sparse:
            raise UserError(f"{self.path}: {tensor.name} is dense there and sparse in this run")
        stored = self.masks[tensor.name]
        if shard.dim is not None:
            stored = stored[cut(stored.ndim, shard.dim, shard.start, shard.stop)]
        if not np.array_equal(stored, mask.cpu().numpy()):
            raise UserError(
                f"{self.path}: the mask of {tensor.name} is not this run's; sparsity.seed, level, pattern and targets "
                f"must be those of the run that saved it"
            )

    def _values(self, tensor: StoredTensor, kind: Kind, part: Slice) -> FloatArray:
        """The kept values [nnz] of one slice of a sparse tensor. Raises UserError unless the mask keeps as many."""
        values = self.files.read(part.file, key_of(tensor.name, kind))
        mask = self.masks[tensor.name]
        kept = int((mask if part.dim is None else mask[cut(mask.ndim, part.dim, part.start, part.stop)]).sum())
        if values.shape != (kept,):
            raise UserError(f"{self.path / part.file} is damaged: {tensor.name} has {values.shape} values, not {kept}")
        return values

    def _dense(
        self, tensor: StoredTensor, kind: Kind, part: Slice, take: tuple[slice, ...] | None = None
    ) -> FloatArray:
        """One slice of a dense tensor, or the part ``take`` of it. Raises UserError if the file has another shape."""
        shape = list(tensor.shape)
        if part.dim is not None:
            shape[part.dim] = part.stop - part.start
        return self.files.read(part.file, key_of(tensor.name, kind), take, shape)

    def _assemble(self, tensor: StoredTensor, kind: Kind, dim: int | None, start: int, stop: int) -> FloatArray:
        """Entries [start, stop) along ``dim`` (None: all) of a tensor, dense, from the slices that hold them."""
        shape = list(tensor.shape)
        wanted = [(0, n) for n in shape]
        if dim is not None:
            wanted[dim] = (start, stop)
        out = np.zeros([max(b - a, 0) for a, b in wanted], dtype=np.float32)
        for part in tensor.slices[kind]:
            held = [(0, n) for n in shape]
            if part.dim is not None:
                held[part.dim] = (part.start, part.stop)
            common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(wanted, held, strict=True)]
            if any(a >= b for a, b in common):
                continue
            into = tuple(slice(a - w, b - w) for (a, b), (w, _) in zip(common, wanted, strict=True))
            take = tuple(slice(a - h, b - h) for (a, b), (h, _) in zip(common, held, strict=True))
            if tensor.sparse:
                mask = self.masks[tensor.name][tuple(slice(a, b) for a, b in held)]
                block = out[into] if common == held else np.zeros(mask.shape, dtype=np.float32)
                block[mask] = self._values(tensor, kind, part)
                if common != held:
                    out[into] = block[take]
            else:
                out[into] = self._dense(tensor, kind, part, take)
        return out


def require_finite(array: FloatArray, name: str, where: Path | str, advice: str = "") -> None:
    """Raise UserError, with the name of the tensor and ``advice``, if a value of ``array`` is NaN or infinite."""
    # NaN in an array makes both results NaN.
    if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        wrong = int((~np.isfinite(array)).sum())
        advice = advice or "its run diverged before it was saved; take an earlier checkpoint"
        raise UserError(f"{where}: {wrong:,} of {array.size:,} values of {name} are not finite: {advice}")


def cut(dims: int, dim: int, start: int, stop: int) -> tuple[slice, ...]:
    """An index that selects [start, stop) along dimension ``dim`` of ``dims``."""
    return tuple(slice(start, stop) if d == dim else slice(None) for d in range(dims))


class StoredFiles:
    """The files of a checkpoint. A safetensors file is mapped, and its digest is checked, when it is first read."""

    def __init__(self, folder: Path, digests: dict[str, str]) -> None:
        self.folder = folder
        self.digests = digests
        self.mapped: dict[str, Any] = {}

    def check(self, name: str) -> None:
        """Raise UserError unless the file has its digest in the manifest."""
        path = self.folder / name
        try:
            found = file_digest(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        if found != self.digests[name]:
            raise UserError(f"{path} is damaged: its SHA-256 is not the manifest's; take another checkpoint")

    def read(
        self, name: str, key: str, index: tuple[slice, ...] | None = None, shape: list[int] | None = None
    ) -> NDArray[Any]:
        """An array of a file, or the part ``index`` of it. Raises UserError unless the whole array has ``shape``."""
        try:
            if name not in self.mapped:
                self.check(name)
                self.mapped[name] = safe_open(self.folder / name, framework="np")
            file = self.mapped[name]
            if shape is not None and file.get_slice(key).get_shape() != shape:
                raise UserError(f"{self.folder / name} is damaged: {key} has another shape than in the manifest")
            return np.asarray(file.get_tensor(key) if index is None else file.get_slice(key)[index])
        except (SafetensorError, OSError) as error:
            how = (
                "is damaged"
                if "os error" not in str(error) and isinstance(error, SafetensorError)
                else "cannot be read"
            )
            raise UserError(f"{self.folder / name} {how}: {key}: {error}") from None


class StoredMasks(Mapping[str, BoolArray]):
    """A checkpoint's masks by name. Each is read on access and checked against its digest; the last one is cached."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path = checkpoint.path
        self.files = checkpoint.files
        self.records = checkpoint.manifest.masks
        self.last: tuple[str, BoolArray] | None = None

    def __getitem__(self, name: str) -> BoolArray:
        if self.last is not None and self.last[0] == name:
            return self.last[1]
        record = self.records[name]
        bits = self.files.read(MASKS, name)
        if bits.dtype != np.uint8 or bits.size != -(-record.shape[0] * record.shape[1] // 8):
            raise UserError(f"{self.path / MASKS} is damaged: {name} has {bits.size} bytes of {bits.dtype}")
        mask = unpack(bits, record.shape)
        if mask_digest(mask) != record.sha256 or int(mask.sum()) != record.kept:
            raise UserError(f"{self.path / MASKS}: the mask of {name} does not match its digest in the manifest")
        mask.flags.writeable = False
        self.last = (name, mask)
        return mask

    def __iter__(self) -> Iterator[str]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __contains__(self, name: Any) -> bool:
        return name in self.records  # Mapping's own test would read the mask
