"""Which execution each sparse linear takes: the config's, or the faster one, measured once per run on rank 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from spdf_kernels import Comparison, SparsityPattern, compare
from spdf_kernels.choose import CRITERION

from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import ModelConfig
from spdf_dist.model.gpt import LINEARS, layer_linears
from spdf_dist.parallel.groups import Groups
from spdf_dist.sparsity.masks import BoolArray
from spdf_dist.training.run_folder import RunFolder


def sparse_places(model: ModelConfig, masks: Mapping[str, BoolArray]) -> list[str]:
    """The products of a layer that have a sparse weight; all layers are alike."""
    return [place for place in LINEARS if any(linear.weight in masks for linear in layer_linears(model, 0, place))]


def decide(
    wanted: str,
    model: ModelConfig,
    masks: Mapping[str, BoolArray],
    groups: Groups,
    folder: RunFolder,
    tokens: int,
    dtype: torch.dtype,
) -> dict[str, str]:
    """`masked` or `compressed` for each sparse product of a layer, the same on every rank.

    ``wanted`` is the config's key. `auto` reads ``execution.json`` of a run that continues; else rank 0 measures each
    shape against dense with ``tokens`` tokens (fewer where that says as much); ``measured`` in the file then tells each
    speed-up with its lower bound. On CUDA it is `masked`, until GPU kernels exist.
    """
    places = sparse_places(model, masks)
    if not places:
        return {}
    decided = None
    measured: dict[str, dict[str, Any]] = {}
    if groups.rank == 0:
        known = folder.read_json(folder.execution.name)
        if wanted != "auto":
            decided = ({place: wanted for place in places}, "set by sparsity.execution")
        elif known is not None and set(known.get("layers", {})) == set(places):
            decided = (known["layers"], known["reason"])
            measured = known.get("measured", {})
        elif groups.device.type == "cuda":
            decided = ({place: "masked" for place in places}, "CUDA: masked until GPU kernels exist")
        else:
            found = {place: compared(model, place, masks, groups, tokens, dtype) for place in places}
            layers: dict[str, str] = {place: comparison.execution for place, comparison in found.items()}
            measured = {place: comparison._asdict() for place, comparison in found.items()}
            decided = (layers, f"measured on rank 0 with {torch.get_num_threads()} threads: {CRITERION}")
        record = {"schema_version": 1, "layers": decided[0], "reason": decided[1], "measured": measured}
        folder.write_json(folder.execution.name, record)
    layers, _reason = groups.broadcast(decided)
    if any(value not in ("masked", "compressed") for value in layers.values()):
        raise UserError(f"{folder.execution}: executions must be masked or compressed; delete the file to decide anew")
    return dict(layers)


def compared(
    model: ModelConfig,
    place: str,
    masks: Mapping[str, BoolArray],
    groups: Groups,
    tokens: int,
    dtype: torch.dtype,
) -> Comparison:
    """The faster execution of one product of the first layer on this rank's slice, and its measurement."""
    linears = layer_linears(model, 0, place)
    dim = 0 if place in ("qkv", "expand") else 1
    parts = []
    for linear in linears:
        shape = (linear.out_features, linear.in_features)
        mask = masks[linear.weight] if linear.weight in masks else np.ones(shape, bool)
        parts.append(np.split(mask, groups.tensor_size, axis=dim)[groups.tensor_rank])
    pattern = SparsityPattern.from_mask(torch.from_numpy(np.concatenate(parts)))
    return compare(pattern, tokens, dtype)
