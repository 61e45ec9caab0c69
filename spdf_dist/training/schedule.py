"""Learning rates as functions of what is done when a step ends.

A schedule counts in one unit, target tokens for pre-training and optimizer steps for fine-tuning, and knows no data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from spdf_dist.config.schema import TrainingConfig


class Schedule(Protocol):
    """The learning rate over a run."""

    def lr(self, consumed: int) -> float:
        """The rate of the step that ends when ``consumed`` units (tokens or steps) are done."""


@dataclass(frozen=True)
class Constant:
    """Linear warm-up over ``warmup`` units, then the peak."""

    peak: float
    warmup: int
    total: int
    """Units of the whole run."""
    min_ratio: float = 0.0
    """The rate at the end, as a fraction of the peak, where the schedule decays."""

    def lr(self, consumed: int) -> float:
        """The rate of the step that ends at ``consumed``."""
        if consumed < self.warmup:
            return self.peak * consumed / self.warmup
        return self.peak * (self.min_ratio + (1 - self.min_ratio) * self.decay(consumed))

    def decay(self, consumed: int) -> float:
        """From 1, the peak, to 0, ``min_ratio`` of it."""
        return 1.0


@dataclass(frozen=True)
class Cosine(Constant):
    """Warm-up, then half a cosine to ``min_ratio`` of the peak at the end. Source: SPDF, appendix A.1."""

    def decay(self, consumed: int) -> float:
        progress = min(1.0, (consumed - self.warmup) / max(1, self.total - self.warmup))
        return 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Linear(Constant):
    """Warm-up, then a line to ``min_ratio`` of the peak at the end. Source: LoRA's fine-tuning (SPDF, appendix A.2)."""

    def decay(self, consumed: int) -> float:
        return max(0.0, (self.total - consumed) / max(1, self.total - self.warmup))


@dataclass(frozen=True)
class WarmupStableDecay(Constant):
    """Warm-up, the peak, and a cooldown over the last ``cooldown`` (a fraction) of the run.

    Runs of several lengths can branch from one trunk at constant rate. The shape `sqrt`, 1 - sqrt(progress), matches a
    cosine of the same length. Source: Haegele et al. (NeurIPS 2024).
    """

    cooldown: float = 0.2
    shape: str = "linear"

    def decay(self, consumed: int) -> float:
        length = self.cooldown * self.total
        progress = min(1.0, max(0.0, (consumed - (self.total - length)) / length))
        return 1 - (math.sqrt(progress) if self.shape == "sqrt" else progress)


SCHEDULES: dict[str, type[Constant]] = {
    "cosine": Cosine,
    "linear": Linear,
    "constant": Constant,
    "wsd": WarmupStableDecay,
}
"""By the value of ``training.schedule``."""


def schedule_of(training: TrainingConfig, total: int) -> Schedule:
    """The schedule of a pre-training run of ``total`` target tokens."""
    extra: dict[str, Any] = {}
    if training.schedule == "wsd":
        extra = {"cooldown": training.cooldown_fraction, "shape": training.cooldown_shape}
    min_ratio = 0.0 if training.schedule == "constant" else training.min_lr_ratio
    return SCHEDULES[training.schedule](training.lr, training.warmup_tokens, total, min_ratio, **extra)
