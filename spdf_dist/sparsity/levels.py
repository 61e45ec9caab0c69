"""Gradual magnitude pruning: the level at each step, and the masks computed from the weights. Does not need torch.

Source: Zhu and Gupta (arXiv 1710.01878). The level may also fall. Random pruned entries then return with value zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from spdf_dist.base.numbers import counted
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import ModelConfig, SparsityConfig
from spdf_dist.sparsity.assignment import sparse_weights
from spdf_dist.sparsity.masks import logical_weights, select
from spdf_dist.sparsity.patterns.base import U64, BoolArray, MagnitudeScores, RandomScores, Scores64
from spdf_dist.sparsity.update import steps_of_updates, stop_step

SHAPES: dict[str, Callable[[float, float, float], float]] = {
    "linear": lambda first, last, t: first + (last - first) * t,
    "cosine": lambda first, last, t: first + (last - first) * 0.5 * (1 - math.cos(math.pi * t)),
    "exponential": lambda first, last, t: 1 - (1 - first) * ((1 - last) / (1 - first)) ** t,
    "cubic": lambda first, last, t: last + (first - last) * (1 - t) ** 3,
}
"""The level at progress t in [0, 1], from ``first`` to ``last``."""

MAX_CHANGES = 64
"""Upper limit of level changes per run, because each change rebuilds the model."""


def change_steps(sparsity: SparsityConfig, total_steps: int) -> list[int]:
    """The optimizer steps, counted from 1, after which the level changes."""
    if sparsity.algorithm != "gmp":
        return []
    steps = list(steps_of_updates(sparsity, total_steps))
    return steps[: len(sparsity.schedule_levels)] if sparsity.schedule == "list" else steps


def level_of_step(sparsity: SparsityConfig, step: int, total_steps: int) -> float:
    """The level during step ``step`` (counted from 1)."""
    if sparsity.algorithm != "gmp":
        return sparsity.level
    steps = change_steps(sparsity, total_steps)
    done = sum(change < step for change in steps)
    if done == 0:
        return sparsity.initial_level
    if done == len(steps):
        return sparsity.level
    if sparsity.schedule == "list":
        return sparsity.schedule_levels[done - 1]
    return round(SHAPES[sparsity.schedule](sparsity.initial_level, sparsity.level, done / len(steps)), 6)


def at_step(sparsity: SparsityConfig, step: int, total_steps: int) -> SparsityConfig:
    """``sparsity`` with the level of step ``step`` (counted from 1)."""
    return replace(sparsity, level=level_of_step(sparsity, step, total_steps))


class GradualScores:
    """Scores that keep the kept entries of a mask first, by magnitude, and then its pruned entries at random."""

    def __init__(self, weight: NDArray[np.float32], mask: BoolArray | None, random: RandomScores) -> None:
        self.weight, self.mask, self.random = weight, mask, random

    def __call__(self, size: int) -> Scores64:
        scores = MagnitudeScores(self.weight)(size)
        if self.mask is None:
            return scores
        pruned = ~self.mask[::size, ::size].ravel()
        return np.where(pruned, U64(2**33) + (self.random(size) >> U64(32)), scores)

    def stream(self, label: str, count: int) -> Scores64:
        return self.random.stream(label, count)


def next_masks(
    model: ModelConfig,
    sparsity: SparsityConfig,
    read: Callable[[str], NDArray[np.float32]],
    masks: Mapping[str, BoolArray],
) -> dict[str, BoolArray]:
    """The masks at ``sparsity.level``, from the weights (``read`` returns one by name) and the previous masks."""
    found = {}
    for name, weight in sparse_weights(logical_weights(model), sparsity).items():
        scores = GradualScores(read(name), masks.get(name), RandomScores(sparsity.seed, name, weight.shape))
        found[name] = select(weight, sparsity, scores)
    return found


def check_levels(sparsity: SparsityConfig, total_steps: int) -> None:
    """Raise UserError for a level schedule that is invalid or has no effect."""
    defaults = SparsityConfig()
    if sparsity.algorithm != "gmp":
        for key in ("schedule", "initial_level", "schedule_levels"):
            if getattr(sparsity, key) != getattr(defaults, key):
                keeps = f"{sparsity.algorithm} keeps the level constant"
                raise UserError(f"sparsity.{key}: {keeps}; a level that changes needs sparsity.algorithm=gmp")
        return
    if sparsity.schedule == "list":
        levels = sparsity.schedule_levels
        if not levels or levels[-1] != sparsity.level or not all(0 <= level < 1 for level in levels):
            raise UserError(
                f"sparsity.schedule_levels: {levels} must be in [0, 1) and end at sparsity.level {sparsity.level}"
            )
    elif sparsity.schedule == "constant" or sparsity.initial_level == sparsity.level:
        raise UserError(
            "sparsity.schedule: gmp needs a level that changes; for a constant one, set sparsity.algorithm=static"
        )
    elif sparsity.schedule_levels:
        raise UserError(f"sparsity.schedule_levels: needs sparsity.schedule=list, not {sparsity.schedule}")
    for key in ("levels", "patterns", "permute"):
        if getattr(sparsity, key):
            raise UserError(f"sparsity.{key}: cannot be combined with sparsity.algorithm=gmp")
    if sparsity.pattern != "unstructured" and not sparsity.pattern.startswith("block:"):
        raise UserError(f"sparsity.pattern: gmp prunes unstructured or in block:B, not {sparsity.pattern}")
    steps = change_steps(sparsity, total_steps)
    if total_steps and not steps:
        raise UserError(
            f"sparsity.update: the level never changes: no step before {stop_step(sparsity, total_steps)} is a "
            f"multiple of every={sparsity.update.every} (the run has {counted(total_steps, 'step')})"
        )
    if len(steps) > MAX_CHANGES:
        raise UserError(
            f"sparsity.update: the level would change {len(steps)} times, and each rebuilds the model; at most "
            f"{MAX_CHANGES}: raise sparsity.update.every"
        )
    if total_steps and sparsity.schedule == "list" and len(steps) < len(sparsity.schedule_levels):
        raise UserError(
            f"sparsity.schedule_levels: {counted(len(sparsity.schedule_levels), 'level')} but only "
            f"{counted(len(steps), 'update')} before step {stop_step(sparsity, total_steps)}; "
            "lower sparsity.update.every"
        )
