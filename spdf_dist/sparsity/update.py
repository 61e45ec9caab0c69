"""Dynamic masks: the steps at which they change, and the entries that each update swaps. Does not need torch.

A weight is divided into ``groups`` equal groups of rows, or of columns where tensor parallelism divides the inputs.
Each update drops the kept entries of the smallest magnitude in each group and grows the same number of other entries.
The number of kept entries per group is constant. Therefore the number of values per rank, ZeRO's partitions and the
shapes in checkpoints do not change, and the ranks agree without communication.

Sources: SET, Mocanu et al. (2018); RigL, Evci et al. (ICML 2020, arXiv 1911.11134).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import ModelConfig, SparsityConfig
from spdf_dist.model.architecture import architecture_of
from spdf_dist.sparsity.assignment import sparse_weights
from spdf_dist.sparsity.masks import logical_weights
from spdf_dist.sparsity.patterns import parse_pattern
from spdf_dist.sparsity.patterns.base import BoolArray, Scores64, keep_lowest, random_scores

SWAPPING = ("set", "rigl")
"""The algorithms that keep the level constant and swap entries."""
MAX_GROUPS = 16
"""Upper limit of the default of ``sparsity.groups``."""
STOP = 0.75
"""Default end of the updates, as a share of all steps. After it the masks and the generated code are final."""

NEVER = np.uint64(2**63)
"""A score larger than the score of any entry."""


def stop_step(sparsity: SparsityConfig, total_steps: int) -> int:
    """The step from which on no updates happen."""
    stop = sparsity.update.stop
    return int(STOP * total_steps) if stop is None else min(stop, total_steps + 1)


def steps_of_updates(sparsity: SparsityConfig, total_steps: int) -> range:
    """The optimizer steps, counted from 1, that ``sparsity.update`` names: multiples of ``every`` from its start on."""
    every = sparsity.update.every
    return range(max(every, -(-sparsity.update.start // every) * every), stop_step(sparsity, total_steps), every)


def update_steps(sparsity: SparsityConfig, total_steps: int) -> range:
    """The optimizer steps, counted from 1, after which SET or RigL changes the masks; empty for other algorithms."""
    return steps_of_updates(sparsity, total_steps) if sparsity.algorithm in SWAPPING else range(0)


def drop_fraction_at(sparsity: SparsityConfig, step: int, total_steps: int) -> float:
    """The share of kept entries that the update after ``step`` swaps: half a cosine from ``drop_fraction`` to 0."""
    progress = min(1.0, step / max(1, stop_step(sparsity, total_steps)))
    return sparsity.drop_fraction * 0.5 * (1 + math.cos(math.pi * progress))


def group_count(model: ModelConfig, sparsity: SparsityConfig) -> int:
    """Number of groups per weight.

    The default is the largest common divisor of the number of key-value heads and the divided dimensions of all
    weights (in blocks), up to ``MAX_GROUPS``. Raises UserError where ``sparsity.groups`` does not divide the weights
    into whole blocks.
    """
    architecture, names = architecture_of(model), sparse_weights(logical_weights(model), sparsity)
    block = parse_pattern(sparsity.pattern).block
    lengths = {name: architecture.prunable[name].shape[architecture.prunable[name].shard_dim or 0] for name in names}
    if sparsity.groups is None:
        whole = math.gcd(model.key_value_heads, *(length // block for length in lengths.values()))
        return max(n for n in range(1, min(MAX_GROUPS, whole) + 1) if whole % n == 0)
    for name, length in lengths.items():
        if length % (sparsity.groups * block):
            what = f"{length} {'inputs' if architecture.prunable[name].shard_dim else 'outputs'} of {name}"
            blocks = f" in blocks of {block}" if block > 1 else ""
            raise UserError(f"sparsity.groups: {sparsity.groups} does not divide the {what}{blocks}")
    return sparsity.groups


def at_random(seed: int, name: str, update: int, shape: tuple[int, int]) -> Scores64:
    """Random growth scores (uint64 [out, in]) of a whole weight, from the random stream of its mask."""
    return random_scores(seed, f"{name}/grow/{update}", shape[0] * shape[1]).reshape(shape) >> np.uint64(2)


def swap(mask: BoolArray, drop: Scores64, grow: Scores64, groups: int, dim: int, fraction: float) -> BoolArray:
    """The next mask of this rank's slice of a weight.

    In each group along ``dim``, the floor(fraction x kept) kept entries of the lowest ``drop`` score are dropped. Then
    the same number of entries of the lowest ``grow`` score is grown. A dropped entry may grow again at once. The lower
    index wins ties. All arrays have the shape of ``mask``.
    """
    new = mask.copy()
    for part, drop_part, grow_part in zip(
        np.split(new, groups, dim), np.split(drop, groups, dim), np.split(grow, groups, dim), strict=True
    ):
        kept = part.ravel()
        count = min(int(fraction * int(kept.sum())), int((~kept).sum()))
        if count == 0:
            continue
        dropped = keep_lowest(np.where(kept, drop_part.ravel(), NEVER), count)
        staying = kept & ~dropped
        grown = keep_lowest(np.where(staying, NEVER, grow_part.ravel()), count)
        part[...] = (staying | grown).reshape(part.shape)  # np.split gives views of ``new``
    return new


def check_dynamic(model: ModelConfig, sparsity: SparsityConfig, total_steps: int, tensor: int) -> None:
    """Raise UserError for a dynamic method whose settings are invalid or have no effect."""
    if sparsity.algorithm not in SWAPPING:
        return
    algorithm = sparsity.algorithm
    if not sparsity.is_sparse:
        raise UserError(f"sparsity.algorithm: {algorithm} needs sparsity.level above 0: a dense model has no masks")
    patterns: Mapping[str, str] = {"pattern": sparsity.pattern, **sparsity.patterns}
    for key, text in patterns.items():
        if text not in ("unstructured", "init_from") and not text.startswith("block:"):
            raise UserError(f"sparsity.{key}: {algorithm} changes unstructured and block:B masks, not {text}")
    if sparsity.permute or sparsity.patterns:
        key = "permute" if sparsity.permute else "patterns"
        raise UserError(f"sparsity.{key}: cannot be combined with sparsity.algorithm={algorithm}")
    if total_steps and not len(update_steps(sparsity, total_steps)):
        update, stop = sparsity.update, stop_step(sparsity, total_steps)
        raise UserError(
            f"sparsity.update: the masks never change: none of the steps {update.start} to {stop - 1} is a multiple of "
            f"every={update.every} (the run has {total_steps} steps)"
        )
    groups = group_count(model, sparsity)
    if groups % tensor:
        raise UserError(f"sparsity.groups: {groups} is not divisible by parallel.tensor {tensor}")
