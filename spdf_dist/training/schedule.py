"""Learning rate schedules, as functions of the progress at the end of a step.

The unit of progress is the target token in pre-training and the optimizer step in fine-tuning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from spdf_dist.config.schema import TrainingConfig


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up over ``warmup`` units, then the peak. Subclasses override ``decay``."""

    peak: float
    """The highest learning rate."""
    warmup: int
    """Units of the warm-up."""
    total: int
    """Units of the whole run."""
    min_ratio: float = 0.0
    """Learning rate at the end of a schedule that decays, as a fraction of the peak."""

    def lr(self, consumed: int) -> float:
        """The learning rate of the step after which ``consumed`` units are done."""
        if consumed < self.warmup:
            return self.peak * consumed / self.warmup
        return self.peak * (self.min_ratio + (1 - self.min_ratio) * self.decay(consumed))

    def decay(self, consumed: int) -> float:
        """A factor from 1 (the peak) to 0 (``min_ratio`` of the peak)."""
        return 1.0


@dataclass(frozen=True)
class Cosine(Schedule):
    """Warm-up, then half a cosine down to ``min_ratio`` of the peak. Source: SPDF, appendix A.1."""

    def decay(self, consumed: int) -> float:
        progress = min(1.0, (consumed - self.warmup) / max(1, self.total - self.warmup))
        return 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Linear(Schedule):
    """Warm-up, then linear decay to ``min_ratio`` of the peak. Source: LoRA's fine-tuning (SPDF, appendix A.2)."""

    def decay(self, consumed: int) -> float:
        return max(0.0, (self.total - consumed) / max(1, self.total - self.warmup))


@dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """Warm-up, the peak, then a cooldown to ``min_ratio`` of the peak.

    Runs of several lengths can branch from one run at constant learning rate. The shape `sqrt`, 1 - sqrt(progress),
    matches the loss of a cosine of the same length. Source: Haegele et al. (NeurIPS 2024).
    """

    cooldown: float = 0.2
    """Length of the cooldown, as a fraction of the run."""
    shape: str = "linear"
    """`linear` or `sqrt`."""

    def decay(self, consumed: int) -> float:
        length = self.cooldown * self.total
        progress = min(1.0, max(0.0, (consumed - (self.total - length)) / length))
        return 1 - (math.sqrt(progress) if self.shape == "sqrt" else progress)


SCHEDULES: dict[str, type[Schedule]] = {
    "cosine": Cosine,
    "linear": Linear,
    "constant": Schedule,
    "wsd": WarmupStableDecay,
}
"""Schedules by the value of ``training.schedule``."""


def schedule_of(training: TrainingConfig, total: int) -> Schedule:
    """The schedule of a pre-training run with ``total`` target tokens."""
    extra: dict[str, Any] = {}
    if training.schedule == "wsd":
        extra = {"cooldown": training.cooldown_fraction, "shape": training.cooldown_shape}
    min_ratio = 0.0 if training.schedule == "constant" else training.min_lr_ratio
    return SCHEDULES[training.schedule](training.lr, training.warmup_tokens, total, min_ratio, **extra)
