"""Chooses the execution of each sparse linear: the config's, or the faster one, measured once per run on rank 0."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from spdf_kernels import Comparison, SparsityPattern, compare, describe
from spdf_kernels.choose import CRITERION
from spdf_kernels.state import backends_by_path, forced_backend
from spdf_kernels.triton.layers import why_not

from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import AnyConfig, ModelConfig
from spdf_dist.model.architecture import architecture_of
from spdf_dist.parallel.groups import Groups
from spdf_dist.sparsity.masks import BoolArray
from spdf_dist.training.engine import dtype_of
from spdf_dist.training.run_folder import RunFolder


def sparse_linears(model: ModelConfig, masks: Mapping[str, BoolArray]) -> list[str]:
    """The linears of a layer that have a sparse weight, by name. All layers have the same ones."""
    architecture = architecture_of(model)
    return [
        linear for linear in architecture.linears if any(w.name in masks for w in architecture.weights_of(0, linear))
    ]


def decide(
    config: AnyConfig,
    model: ModelConfig,
    masks: Mapping[str, BoolArray],
    groups: Groups,
    folder: RunFolder,
    tokens: int,
) -> dict[str, str]:
    """`masked` or `compressed` for each sparse linear of a layer, the same on every rank; collective.

    ``config.sparsity.execution`` sets it. With `auto`, a run that continues uses its ``execution.json``, unless another
    kind of device recorded that. Otherwise rank 0 compares each shape with dense on ``tokens`` tokens, or on fewer
    where these suffice, and writes the file. Its key ``measured`` holds each speed-up with its lower bound. On a GPU,
    ``layers_outside_products`` says whether the fused kernels of norms and activation functions are used.

    Raises UserError if ``execution.json`` is damaged.
    """
    linears = sparse_linears(model, masks)
    if not linears:
        return {}

    def on_one_rank() -> dict[str, str]:
        measured: dict[str, dict[str, Any]] = {}
        wanted = config.sparsity.execution
        if wanted != "auto":
            chosen: dict[str, str] = dict.fromkeys(linears, wanted)
            reason = "set by sparsity.execution"
        elif (known := recorded(folder, linears, groups.device.type)) is not None:
            return known
        else:
            patterns = {
                linear: on_device(local_pattern(model, linear, masks, groups), groups.device) for linear in linears
            }
            found, how = measure(
                patterns, model.num_layers, tokens, dtype_of(config.training.precision), config.kernels.code_budget_mb
            )
            chosen = {linear: comparison.execution for linear, comparison in found.items()}
            measured = {linear: comparison._asdict() for linear, comparison in found.items()}
            reason = f"measured on rank 0 {measured_with(groups.device)}: {CRITERION}{how}"
        record = {
            "schema_version": 1,
            "device": groups.device.type,
            "layers": chosen,
            "reason": reason,
            "measured": measured,
        }
        if groups.device.type == "cuda":
            record["layers_outside_products"] = why_not(groups.device) or "fused kernels"
        folder.write_json(folder.execution.name, record)
        return chosen

    layers: dict[str, str] = groups.on_rank_zero(on_one_rank)
    return layers


def measured_with(device: torch.device) -> str:
    """The clock and the software that a measurement depends on, in words."""
    if device.type != "cuda":
        return f"with {torch.get_num_threads()} threads"
    triton = version("triton") if find_spec("triton") else "none"
    return f"on {torch.cuda.get_device_name(device)} between CUDA events, torch {torch.__version__}, Triton {triton}"


def on_device(pattern: SparsityPattern, device: torch.device) -> SparsityPattern:
    """The pattern, moved to ``device``."""
    return pattern if device.type == "cpu" else SparsityPattern.from_mask(pattern.mask().to(device))


def recorded(folder: RunFolder, linears: Collection[str], device: str) -> dict[str, str] | None:
    """The executions in ``execution.json``; None if it has none for these linears on this kind of device.

    Raises UserError if the file does not have the form that ``decide`` writes.
    """
    known = folder.read_json(folder.execution.name)
    if known is None:
        return None
    layers, reason, measured = known.get("layers"), known.get("reason", ""), known.get("measured", {})
    if not (
        isinstance(layers, dict)
        and all(value in ("masked", "compressed") for value in layers.values())
        and isinstance(reason, str)
        and isinstance(measured, dict)
    ):
        raise UserError(f"{folder.execution}: executions must be masked or compressed; delete the file to decide again")
    fits = set(layers) == set(linears) and known.get("device", "cpu") == device
    return layers if fits else None


def measure(
    patterns: Mapping[str, SparsityPattern], num_layers: int, tokens: int, dtype: torch.dtype, code_budget_mb: int
) -> tuple[dict[str, Comparison], str]:
    """The comparison of each linear with dense, and a text to append to the criterion.

    Each linear is measured on its own, but all layers share the budget for generated code. If their code does not fit
    together, each linear is also measured with the compact kernels. A linear that is compressed there too stays
    compressed. The others stay compressed, in the order of their speed-up, while their code still fits.
    """
    found = {linear: compare(pattern, tokens, dtype) for linear, pattern in patterns.items()}
    code = {
        linear: num_layers * describe(patterns[linear], dtype).code_bytes
        for linear, comparison in found.items()
        if comparison.execution == "compressed"
    }
    left = code_budget_mb * 2**20
    if sum(code.values()) <= left:
        return found, ""
    with forced_backend(backends_by_path(next(iter(patterns.values())), dtype)["compact"].name):
        on_rows = {linear: compare(patterns[linear], tokens, dtype) for linear in code}
    left -= sum(size for linear, size in code.items() if on_rows[linear].execution == "compressed")
    for linear in sorted(code, key=lambda linear: -(found[linear].speedup or 0)):
        if on_rows[linear].execution == "masked" and code[linear] <= left:
            left -= code[linear]
        else:
            found[linear] = on_rows[linear]
    needed = sum(code.values()) / 2**20
    return (
        found,
        f"; without generated code where it may not fit: it needs {needed:.0f} MiB, and kernels.code_budget_mb is "
        f"{code_budget_mb}",
    )


def local_pattern(model: ModelConfig, linear: str, masks: Mapping[str, BoolArray], groups: Groups) -> SparsityPattern:
    """The pattern of this rank's slice of one linear of the first layer."""
    parts = []
    for weight in architecture_of(model).weights_of(0, linear):
        mask = masks[weight.name] if weight.name in masks else np.ones(weight.shape, bool)
        axis = weight.shard_dim or 0
        parts.append(np.split(mask, groups.tensor_size, axis=axis)[groups.tensor_rank])
    return SparsityPattern.from_mask(torch.from_numpy(np.concatenate(parts)))
