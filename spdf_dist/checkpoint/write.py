"""Writes checkpoints: every rank writes its own slices, and rank 0 writes the masks and, last, the manifest.

Everything is written to a temporary folder with an unguessable name, forced to the disk and renamed, so a folder named
``step_N`` is complete. If any rank fails, all ranks raise, the temporary folder is removed, and the earlier checkpoints
stay intact.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spdf_dist.base.atomic_files import (
    remove_leftovers,
    rename_synced,
    spare_files,
    sync,
    temporary_beside,
    try_to_remove,
)
from spdf_dist.base.collective import Collective, SingleProcess
from spdf_dist.base.digests import file_digest, sealed
from spdf_dist.base.provenance import made_with
from spdf_dist.checkpoint.find import latest, remove_remains, whole_checkpoints
from spdf_dist.checkpoint.manifest import (
    CONFIG,
    FORMAT,
    KINDS,
    MANIFEST,
    MASKS,
    TOKENIZER,
    VERSION,
    Kind,
    Slice,
    check_cover,
    global_shapes,
    has_kind,
    key_of,
    optimizer_of,
    read_manifest,
)
from spdf_dist.checkpoint.packed_masks import PackedMasks
from spdf_dist.checkpoint.stream import SafetensorsStream, header_room
from spdf_dist.config.errors import SpdfError, UserError, exit_code_of
from spdf_dist.config.load import build
from spdf_dist.config.schema import ModelConfig
from spdf_dist.data.tokenizer import load_tokenizer
from spdf_dist.model.architecture import architecture_of
from spdf_dist.model.parameterization import STANDARD, Parameterization
from spdf_dist.parallel.layout import TensorShard
from spdf_dist.sparsity.masks import BoolArray

STEMS: dict[Kind, str] = {"model": "model", "exp_avg": "optim", "exp_avg_sq": "optim"}


@dataclass(frozen=True)
class Report:
    """The slices and files that one rank wrote, or the reason why it failed."""

    own: dict[str, Any]
    failure: Exception | None


class Content(TypedDict):
    """The content of a checkpoint beside its slices; that of rank 0 is written."""

    masks: Mapping[str, BoolArray] | None
    """Global masks by logical weight name, bool [out, in]. Pass ``PackedMasks`` when saving more than once. They may
    include masks of dense tensors, as a record of the masks before densification."""
    config_yaml: str
    """The run's resolved config; empty: none."""
    tokenizer: Path | None
    """A tokenizer's file or folder, which is copied."""
    manifest: Mapping[str, Any]
    """``kind`` and ``model`` (ModelConfig as a dict), on every rank; on rank 0 also ``sparsity`` (or None),
    ``consumed_tokens`` and, if there are any, ``parameterization``, ``optimizer``, ``state`` and ``source``."""
    rank_state: NotRequired[object]
    """JSON of each rank, which is stored by rank in the manifest's ``rank_state``."""
    mask_records: NotRequired[Mapping[str, NDArray[np.uint8]] | None]
    """Further packed bits for the file of masks, by key."""


class CheckpointWriter:
    """Writes one checkpoint of a job. Every rank has one and calls ``write`` once.

    Args:
        root: the folder of the run's checkpoints, on a file system that all ranks share.
        step: optimizer steps done; the folder's name is ``step_N`` unless ``name`` is given.
        ranks: the ranks of the job. Rank 0 writes what all ranks share.
        name: the name of the checkpoint's folder.
    """

    def __init__(self, root: Path, step: int, ranks: Collective, name: str | None = None) -> None:
        self.root = Path(root)
        self.step = step
        self.ranks = ranks
        self.rank = ranks.rank
        self.final = self.root / (name or f"step_{step}")
        self.among_others = name is None
        """Whether other checkpoints under ``root`` belong to the same run."""
        self.aside = temporary_beside(self.final)
        """The temporary folder. ``begin`` gives it one name on all ranks and creates it."""
        self._spare = contextlib.ExitStack()

    def write(self, shards: Iterable[tuple[Kind, TensorShard, Tensor]], **content: Unpack[Content]) -> Path:
        """Write the checkpoint; collective.

        Args:
            shards: the slices that this rank must write, float32 on any device. Each slice of a global tensor is on one
                rank only. The iterable is consumed one by one, and to its end even if this rank has failed, so a
                generator may call collectives. A sparse shard comes as its kept values [nnz], or as the dense slice;
                then pruned entries that are not zero are counted.
            content: see ``Content``.

        Returns: the checkpoint's folder.

        Raises:
            SpdfError: on every rank, if any of them failed, as on a full disk.
        """
        failure = self.begin()
        return self.complete(self.write_slices(shards, content["manifest"], failure), content)

    def begin(self) -> Exception | None:
        """Create the temporary folder; collective. Returns the error on rank 0, if that fails.

        The remains of interrupted saves are deleted first.
        """
        failure: Exception | None = None
        aside = temporary_beside(self.final)
        if self.rank == 0:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                if self.among_others:
                    remove_remains(self.root)
                else:
                    remove_leftovers(self.final)
                self._spare = spare_files()
                aside.mkdir()
            except OSError as error:
                failure = error
        self.aside = self.final.with_name(self.ranks.broadcast(aside.name))
        return failure

    def write_slices(
        self,
        shards: Iterable[tuple[Kind, TensorShard, Tensor]],
        manifest: Mapping[str, Any],
        failure: Exception | None = None,
    ) -> Report:
        """Write this rank's files. A thread may call it if ``shards`` calls no collectives. It raises nothing."""
        own: dict[str, Any] = {}
        try:
            own = self._write_slices(shards, manifest)
        except Exception as error:  # `complete` tells every rank of it
            failure = failure or error
        return Report(own, failure)

    def complete(self, report: Report, content: Content) -> Path:
        """Complete the checkpoint after every rank has written its files; collective. See ``write``."""
        failure = report.failure
        told = {"failure": describe(failure), "code": 0 if failure is None else exit_code_of(failure)}
        reports = self.ranks.gather({**report.own, **told, "state": content.get("rank_state")})
        verdict, code = None, 0
        if reports is not None:
            try:
                failed = next((rank for rank, told in enumerate(reports) if told["failure"]), None)
                if failed is not None:
                    verdict, code = f"rank {failed}: {reports[failed]['failure']}", reports[failed]["code"]
                else:
                    self._complete(reports, content)
            except Exception as error:
                failure = error
                verdict, code = f"rank 0: {describe(error)}", exit_code_of(error)
            self._spare.close()
            if verdict is not None:
                shutil.rmtree(self.aside, ignore_errors=True)
                if self.among_others:
                    last = latest(self.root)
                    stays = f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"
                    verdict += f"; {stays}"
        verdict, code = self.ranks.broadcast((verdict, code))
        if verdict is not None:
            if isinstance(report.failure, SpdfError):
                raise report.failure  # an error from the source of the shards, which has its own message
            unsaved = SpdfError(f"checkpoint {self.final} was not saved: {verdict}")
            unsaved.exit_code = code
            raise unsaved from failure
        return self.final

    def _write_slices(
        self, shards: Iterable[tuple[Kind, TensorShard, Tensor]], manifest: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write this rank's files; returns the descriptions of their slices, sizes and digests."""
        names = list(global_shapes(build(ModelConfig, manifest["model"], "model")))
        room = {
            stem: header_room(key_of(n, k) for n in names for k in KINDS if STEMS[k] == stem) for stem in STEMS.values()
        }
        streams: dict[str, SafetensorsStream] = {}
        slices = []
        remaining = iter(shards)
        try:
            for kind, shard, tensor in remaining:
                if min(shard.local_shape) <= 0:
                    continue  # this rank holds only vocabulary padding
                stem = STEMS[kind]
                file = f"{stem}-{self.rank:05d}.safetensors"
                if file not in streams:
                    streams[file] = SafetensorsStream(self.aside / file, room[stem])
                content, pruned_nonzero = stored_form(shard, tensor)
                streams[file].add(key_of(shard.name, kind), content.cpu().numpy())
                slices.append(
                    {
                        "name": shard.name,
                        "kind": kind,
                        "shape": list(shard.shape),
                        "values": content.numel() if shard.sparse else None,
                        "pruned_nonzero": pruned_nonzero,
                        "slice": {"file": file, "dim": shard.dim, "start": shard.start, "stop": shard.stop},
                    }
                )
            for stream in streams.values():
                stream.complete()
        finally:
            for stream in streams.values():
                with contextlib.suppress(OSError):  # complete files are on the disk; for others an error is raised
                    stream.file.close()
            for _ in remaining:
                pass
        files = {name: describe_file(self.aside / name) for name in streams}
        return {"slices": slices, "files": files}

    def _complete(self, reports: list[Any], content: Content) -> None:
        """On rank 0: write masks, config, tokenizer and manifest, and rename the folder."""
        given = content["manifest"]
        packed = PackedMasks.pack(content["masks"] or {})
        parameterization: Parameterization = given.get("parameterization", STANDARD)
        model, optimizer = build(ModelConfig, given["model"], "model"), optimizer_of(given.get("optimizer"))
        tensors = collect_tensors(reports, model, packed, optimizer)
        files = {name: record for report in reports for name, record in report["files"].items()}
        for name in files:
            if not (self.aside / name).is_file():
                raise FileNotFoundError(f"{self.aside / name} is not visible: ranks need a shared file system")
        shared = []
        if len(packed):
            bits = packed.bits | dict(content.get("mask_records") or {})
            with SafetensorsStream(self.aside / MASKS, header_room(bits)) as stream:
                for name, array in bits.items():
                    stream.add(name, array)
            shared.append(MASKS)
        if content["config_yaml"]:
            (self.aside / CONFIG).write_text(content["config_yaml"], encoding="utf-8")
            shared.append(CONFIG)
        if content["tokenizer"] is not None:
            load_tokenizer(content["tokenizer"]).save(self.aside / TOKENIZER)
            shared += sorted(f"{TOKENIZER}/{path.name}" for path in (self.aside / TOKENIZER).iterdir())
        for name in shared:
            sync(self.aside / name)
            files[name] = describe_file(self.aside / name)
        tree = {
            "format": FORMAT,
            "version": VERSION,
            "step": self.step,
            "consumed_tokens": given.get("consumed_tokens", 0),
            "kind": given["kind"],
            "model": given["model"],
            "sparsity": given["sparsity"],
            **({} if parameterization.is_standard else {"parameterization": asdict(parameterization)}),
            "optimizer": given.get("optimizer"),
            "state": given.get("state", {}),
            "rank_state": [report["state"] for report in reports],
            "source": given.get("source"),
            "tensors": tensors,
            "masks": {name: asdict(record) for name, record in packed.records.items()},
            "files": files,
            **made_with(),
        }
        for folder in {(self.aside / name).parent for name in files}:
            sync(folder)
        (self.aside / MANIFEST).write_bytes(sealed(tree))
        sync(self.aside / MANIFEST)
        sync(self.aside)
        # An existing folder of this name is damaged or an earlier save of the same step. It is replaced only now.
        old = temporary_beside(self.final)
        if self.final.exists():
            self.final.rename(old)
        try:
            rename_synced(self.aside, self.final)
        except OSError:
            if old.exists():
                old.rename(self.final)
            raise
        try_to_remove(old)  # the new checkpoint is saved, even if the old one cannot be deleted


def new_folder(out: Path) -> Path:
    """The real path, with symbolic links resolved, of the folder ``out`` that will be created.

    ``out`` must be absent or empty. Raises UserError if it is taken, is the current folder (which the rename would
    replace), or lies below a file.
    """
    real = out.resolve()
    if real == Path.cwd():
        raise UserError(f"{out} is the current folder: give the name of a new one")
    if is_taken(real):
        raise UserError(f"{out} exists and is not an empty folder: choose another")
    above = next(folder for folder in real.parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"{out} cannot be created: {above} is not a folder")
    return real


def is_taken(path: Path) -> bool:
    """Whether ``path`` exists and is not an empty folder."""
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def single_writer(folder: Path, step: int) -> CheckpointWriter:
    """A writer for a single process, to a folder of any name."""
    return CheckpointWriter(folder.parent, step, SingleProcess(), name=folder.name)


def whole(name: str, tensor: Tensor, mask: Tensor | None = None) -> TensorShard:
    """A shard that covers a whole tensor."""
    shape = tuple(tensor.shape)
    return TensorShard(name, shape, None, 0, shape[0], 0, shape[0], mask)


def stored_form(shard: TensorShard, tensor: Tensor) -> tuple[Tensor, int]:
    """The stored form of a shard (dense slice or kept values [nnz]), and the number of its non-zero pruned entries.

    Raises ValueError if the dtype is not float32 or the shape is not that of the shard.
    """
    if tensor.dtype != torch.float32:
        raise ValueError(f"{shard.name} is {tensor.dtype}: checkpoints hold float32 (masters, not their bf16 copies)")
    tensor = tensor.detach()
    mask = shard.mask
    if mask is None:
        if tuple(tensor.shape) != shard.local_shape:
            raise ValueError(f"{shard.name} is {tuple(tensor.shape)}, its slice {shard.local_shape}")
        return tensor.contiguous(), 0
    if tuple(mask.shape) != shard.local_shape:
        raise ValueError(f"{shard.name}: the mask is {tuple(mask.shape)}, the slice {shard.local_shape}")
    if tuple(tensor.shape) == shard.local_shape:
        values = tensor[mask.to(tensor.device)]
        return values, int(tensor.count_nonzero()) - int(values.count_nonzero())
    kept = int(mask.sum())
    if tuple(tensor.shape) != (kept,):
        raise ValueError(f"{shard.name} has {tuple(tensor.shape)} values, its mask keeps {kept}")
    return tensor.contiguous(), 0


def collect_tensors(
    reports: list[Any], model: ModelConfig, masks: PackedMasks, optimizer: str = "adamw"
) -> dict[str, Any]:
    """The manifest's ``tensors``, from every rank's slices.

    Raises ValueError unless the slices cover each tensor of the model exactly once, in weights and in any moments.
    """
    shapes = global_shapes(model)
    tensors: dict[str, Any] = {
        name: {"shape": list(shape), "sparse": False, "slices": {}, "pruned_nonzero": {}}
        for name, shape in shapes.items()
    }
    values: dict[tuple[str, Kind], int] = {}
    for report in reports:
        for part in report["slices"]:
            name, kind = part["name"], part["kind"]
            if name not in tensors or tuple(part["shape"]) != shapes[name]:
                raise ValueError(f"{name} of shape {part['shape']} does not belong to this model")
            tensor = tensors[name]
            tensor["slices"].setdefault(kind, []).append(part["slice"])
            tensor["pruned_nonzero"][kind] = tensor["pruned_nonzero"].get(kind, 0) + part["pruned_nonzero"]
            if part["values"] is not None:
                tensor["sparse"] = True
                values[name, kind] = values.get((name, kind), 0) + part["values"]
    for (name, kind), count in values.items():
        if name not in masks:
            raise ValueError(f"{name} is sparse and its mask was not given")
        if masks.records[name].shape != shapes[name] or masks.records[name].kept != count:
            raise ValueError(f"{kind} of {name} has {count} values, which do not match the given mask")
    stored = {kind for tensor in tensors.values() for kind in tensor["slices"]} | {"model"}
    kinds: list[Kind] = [kind for kind in KINDS if kind in stored]
    specs = architecture_of(model).tensors
    for name, tensor in tensors.items():
        for kind in kinds:
            if not has_kind(kind, specs[name], optimizer):
                continue
            parts = tensor["slices"].setdefault(kind, [])
            parts.sort(key=lambda part: part["start"])
            check_cover(f"{kind} of {name}", shapes[name], [Slice(**part) for part in parts])
    return tensors


def describe(error: Exception | None) -> str | None:
    """An exception as one line of text; None for None."""
    if error is None:
        return None
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f' ({error.filename})' if error.filename else ''}"
    return f"{type(error).__name__}: {error}"


def describe_file(path: Path) -> dict[str, Any]:
    """Size and digest of a file, for the manifest."""
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def prune(root: Path, keep: int, protect: int | None = None) -> None:
    """Delete complete checkpoints under ``root``, except the newest ``keep`` and that of step ``protect``.

    The remains of interrupted saves are deleted too. Incomplete checkpoints are kept, and so are folders whose name is
    not that of their step, such as a user's copy ``step_10.bak``. Only one rank calls it, while no rank is saving.
    """
    remove_remains(root)
    steps = {folder: read_manifest(folder).step for folder in whole_checkpoints(root)}
    own = [folder for folder, step in steps.items() if folder.name == f"step_{step}"]
    for folder in own[: -keep or None]:
        if steps[folder] != protect:
            delete(folder)


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that an interrupted deletion leaves nothing like a checkpoint.

    Raises OSError if it cannot be renamed. What cannot be deleted then, such as files on NFS that another process
    reads, stays until the next clean-up.
    """
    try_to_remove(checkpoint.rename(temporary_beside(checkpoint)))
