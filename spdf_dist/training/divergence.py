"""Spike detection: an update is skipped if its loss or gradient norm is far above the recent median."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field

WINDOW = 64
"""Number of recent values whose median is taken."""


@dataclass
class SpikeLimit:
    """A limit of ``factor`` times the median of the last ``WINDOW`` values. There is no limit before that many values,
    or with factor 0.

    Values of skipped updates count as well, so that the limit adapts to a level that persists.
    """

    factor: float
    values: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    @classmethod
    def of(cls, factor: float, recent: list[float]) -> SpikeLimit:
        """The limit of a run that continues after the values ``recent``."""
        return cls(factor, deque(recent, maxlen=WINDOW))

    def limit(self) -> float:
        """The largest value that is not a spike; infinite without a limit."""
        if not self.factor or len(self.values) < WINDOW:
            return math.inf
        return self.factor * statistics.median(self.values)

    def add(self, value: float) -> None:
        """Add the value of a step, unless it is not finite (NaN stands for a value that was not computed)."""
        if math.isfinite(value):
            self.values.append(value)
