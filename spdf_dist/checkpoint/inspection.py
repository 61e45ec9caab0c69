"""Inspects a checkpoint: counts, sparsity, mask digests, and whether any pruned entry is not zero.

It reads and checks every file, and needs no torch.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from spdf_dist.accounting.text_table import text_table
from spdf_dist.base.progress_bar import ProgressBar
from spdf_dist.checkpoint.manifest import KINDS, MASKS, StoredTensor
from spdf_dist.checkpoint.packed_masks import unpack
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.sparsity.masks import logical_weights


def inspect(path: Path | str) -> dict[str, Any]:
    """Facts about a checkpoint, as JSON.

    ``weights`` lists the logical weights. ``nnz`` is the number of entries that the mask keeps (all entries of a dense
    weight). ``nonzero`` is the number of these that are not exactly zero. ``pruned_nonzero`` is the number of entries
    outside the mask that are not zero, in weights and moments together.

    A sparse tensor is stored as its kept values, so pruned non-zeros are only visible while saving. The writer counts
    them if the run holds a dense weight, and the count in the manifest is reported here. This function checks that each
    slice holds exactly as many values as its mask keeps.

    Raises:
        UserError: the checkpoint is not complete, or its files are damaged.
    """
    checkpoint = Checkpoint(path)
    checkpoint.verify()
    manifest = checkpoint.manifest
    logical = logical_weights(checkpoint.model)
    nonzero: dict[str, int] = {}
    stored = dict.fromkeys(KINDS, 0)
    for name, tensor in ProgressBar(manifest.tensors.items(), desc="inspect", unit="tensor", leave=False):
        for kind in tensor.slices:
            parts = list(checkpoint.read_values(name, kind))
            stored[kind] += sum(part.nbytes for part in parts)
            if kind == "model":
                nonzero[name] = sum(int(np.count_nonzero(part)) for part in parts)
    weights = [describe(checkpoint, manifest.tensors[name], nonzero[name]) for name in logical]
    parameters = sum(math.prod(tensor.shape) for tensor in manifest.tensors.values())
    entries = sum(math.prod(shape) for shape in logical.values())
    kept = sum(weight["nnz"] for weight in weights)
    return {
        "path": str(checkpoint.path),
        "kind": manifest.kind,
        "step": manifest.step,
        "consumed_tokens": manifest.consumed_tokens,
        "model": asdict(checkpoint.model),
        "sparsity": None if checkpoint.sparsity is None else asdict(checkpoint.sparsity),
        "parameterization": asdict(checkpoint.parameterization),
        "parameters": parameters,
        "kept_parameters": parameters - entries + kept,
        "linear_sparsity": 1 - kept / entries,
        **mask_history(checkpoint),
        "pruned_nonzero": sum(weight["pruned_nonzero"] for weight in weights),
        "stored_bytes": {**stored, "masks": manifest.files[MASKS].bytes if MASKS in manifest.files else 0},
        "file_bytes": sum(file.bytes for file in manifest.files.values()),
        "source": manifest.source,
        "weights": weights,
    }


def mask_history(checkpoint: Checkpoint) -> dict[str, float]:
    """How far dynamic masks have moved: the share of kept entries that the first mask keeps too, and the share of all
    entries that any mask has kept."""
    if checkpoint.sparsity is None or checkpoint.sparsity.algorithm not in ("set", "rigl"):
        return {}
    kept = overlap = ever = numel = 0
    for name, fact in checkpoint.manifest.masks.items():
        if not checkpoint.manifest.tensors[name].sparse:
            continue
        first, seen = (unpack(checkpoint.files.read(MASKS, f"{key}/{name}"), fact.shape) for key in ("first", "ever"))
        kept += fact.kept
        overlap += int((first & checkpoint.masks[name]).sum())
        ever += int(seen.sum())
        numel += seen.size
    return {"overlap_with_first_mask": overlap / kept, "ever_active": ever / numel} if kept else {}


def describe(checkpoint: Checkpoint, tensor: StoredTensor, nonzero: int) -> dict[str, Any]:
    """One logical weight, as JSON."""
    numel = math.prod(tensor.shape)
    mask = checkpoint.manifest.masks.get(tensor.name)
    summary: dict[str, Any] = {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "sparsity": 0.0,
        "nnz": numel,
        "mask_sha256": None,
        "pruned_nonzero": sum(tensor.pruned_nonzero.values()),
        "nonzero": nonzero,
    }
    if tensor.sparse and mask is not None:
        summary |= {"sparsity": 1 - mask.kept / numel, "nnz": mask.kept, "mask_sha256": mask.sha256}
    elif mask is not None:
        # A dense weight that was sparse: count the formerly pruned entries that are no longer zero.
        reactivated = checkpoint.read_array(tensor.name)[~checkpoint.masks[tensor.name]]
        summary["reactivated"] = {
            "count": numel - mask.kept,
            "nonzero": int(np.count_nonzero(reactivated)),
            "norm": float(np.linalg.norm(reactivated.astype(np.float64))),
            "mask_sha256": mask.sha256,
        }
    return summary


def table(summary: dict[str, Any]) -> str:
    """The result of ``inspect`` as text."""
    model = summary["model"]
    stored = summary["stored_bytes"]
    lines = [
        f"{summary['path']}: {summary['kind']} checkpoint, step {summary['step']}, "
        f"{summary['consumed_tokens']:,} tokens",
        f"model: {model['family']}, {model['num_layers']} layers, width {model['hidden_size']}, "
        f"{model['num_attention_heads']} heads, context {model['seq_length']}, vocabulary {model['vocab_size']}",
        f"parameters: {summary['parameters']:,}, of which kept: {summary['kept_parameters']:,}; "
        f"sparsity of the linear weights: {summary['linear_sparsity']:.4%}",
        f"stored: weights {mib(stored['model'])}, moments {mib(stored['exp_avg'] + stored['exp_avg_sq'])}, "
        f"masks {mib(stored['masks'])}; files {mib(summary['file_bytes'])}",
        f"pruned and not zero, in weights and moments: {summary['pruned_nonzero']}",
        "",
    ]
    head = ("weight", "shape", "sparsity", "nnz", "pruned_nonzero", "mask_sha256")
    rows = [
        (
            weight["name"],
            "x".join(map(str, weight["shape"])),
            f"{weight['sparsity']:.6f}",
            f"{weight['nnz']}",
            f"{weight['pruned_nonzero']}",
            (weight["mask_sha256"] or "dense")[:16],
        )
        for weight in summary["weights"]
    ]
    return "\n".join([*lines, text_table(head, rows, left=len(head))])


def mib(count: int) -> str:
    """A number of bytes as text, in MiB."""
    return f"{count / 2**20:,.2f} MiB"
