"""When an update is left out: a loss or a gradient norm far above its recent median."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field

WINDOW = 64
"""Recent values whose median is the running estimate."""


@dataclass
class SpikeLimit:
    """``factor`` times the median of the last values, once there are ``WINDOW`` of them; 0 is no limit.

    Values of skipped updates count as well, so that the estimate adapts to a level that stays.
    """

    factor: float
    values: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    @classmethod
    def of(cls, factor: float, recent: list[float]) -> SpikeLimit:
        """The limit of a run that goes on after ``recent`` values."""
        return cls(factor, deque(recent, maxlen=WINDOW))

    def limit(self) -> float:
        """The largest value that is no spike."""
        if not self.factor or len(self.values) < WINDOW:
            return math.inf
        return self.factor * statistics.median(self.values)

    def add(self, value: float) -> None:
        """Count the value of a step; one that was not computed (NaN) is left out."""
        if math.isfinite(value):
            self.values.append(value)
