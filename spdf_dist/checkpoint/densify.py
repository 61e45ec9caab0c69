"""Drops the masks of a checkpoint, which gives the dense model for fine-tuning (paper, section 3, step two)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from spdf_dist.base.progress_bar import ProgressBar
from spdf_dist.checkpoint.find import is_whole
from spdf_dist.checkpoint.lineage import lineage
from spdf_dist.checkpoint.manifest import Kind, read_manifest
from spdf_dist.checkpoint.read import Checkpoint, require_finite
from spdf_dist.checkpoint.write import is_taken, new_folder, single_writer, whole
from spdf_dist.config.errors import UserError
from spdf_dist.parallel.layout import TensorShard


@dataclass(frozen=True)
class Densified:
    """The result of ``densify``."""

    path: Path
    """The dense checkpoint."""
    reactivated: int
    """Number of weights that were pruned and become trainable; they start at zero."""
    weights: int
    """Number of entries of the tensors that had masks."""
    already_done: bool
    """Whether ``path`` was this densification already, so that nothing was written."""


def reactivated_count(checkpoint: Checkpoint) -> tuple[int, int]:
    """The number of pruned entries of a checkpoint, and the number of all entries of its sparse tensors."""
    masks = [checkpoint.manifest.masks[t.name] for t in checkpoint.manifest.tensors.values() if t.sparse]
    entries = sum(mask.shape[0] * mask.shape[1] for mask in masks)
    return entries - sum(mask.kept for mask in masks), entries


def source_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The record of a checkpoint in the manifest of one that is made from it."""
    reactivated, _ = reactivated_count(checkpoint)
    return {
        "manifest_sha256": checkpoint.manifest.sha256,
        "kind": checkpoint.manifest.kind,
        "step": checkpoint.step,
        "consumed_tokens": checkpoint.manifest.consumed_tokens,
        "sparsity": None if checkpoint.sparsity is None else asdict(checkpoint.sparsity),
        "masks": {name: mask.sha256 for name, mask in checkpoint.manifest.masks.items()},
        "reactivated": reactivated,
        "lineage": lineage(checkpoint),
    }


def densify(source: Path | str, out: Path) -> Densified:
    """Write the weights of ``source`` to the checkpoint folder ``out``, dense, without moments, at step 0.

    Nothing is written if ``out`` is the densification of the same checkpoint already.

    Raises:
        UserError: ``source`` is not a complete checkpoint or has a weight that is not finite; ``out`` exists and is
            something else.
    """
    checkpoint = Checkpoint(source)
    reactivated, entries = reactivated_count(checkpoint)
    if is_taken(out):
        if out.is_dir() and is_whole(out):
            found = read_manifest(out)
            if found.kind == "densified" and (found.source or {}).get("manifest_sha256") == checkpoint.manifest.sha256:
                return Densified(out, reactivated, entries, True)
        raise UserError(f"{out} exists and is not the densification of {checkpoint.path}: choose another folder")

    real = new_folder(out)

    def shards() -> Iterator[tuple[Kind, TensorShard, Tensor]]:
        for name in ProgressBar(checkpoint.manifest.tensors, desc="densify", unit="tensor", leave=False):
            tensor = checkpoint.read(name)
            require_finite(tensor.numpy(), name, checkpoint.path)
            yield "model", whole(name, tensor), tensor

    single_writer(real, 0).write(
        shards(),
        masks=checkpoint.masks,  # the record of the pruned entries, which fine-tuning reports on
        config_yaml=checkpoint.config_yaml,
        tokenizer=checkpoint.tokenizer_dir,
        manifest={
            "kind": "densified",
            "model": asdict(checkpoint.model),
            "sparsity": None,
            "parameterization": checkpoint.parameterization,
            "source": source_of(checkpoint),
        },
    )
    return Densified(out, reactivated, entries, False)
