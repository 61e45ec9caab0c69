"""Types of config values with a range, which ``spdf_dist.config.validate`` checks and the reference shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """What holds for a number, in words and as a test. NaN fails every test."""

    words: str
    holds: Callable[[float], bool]


Count = Annotated[int, Range("must be 1 or more", lambda value: value >= 1)]
NotNegative = Annotated[int, Range("must not be negative", lambda value: value >= 0)]
Size = Annotated[int, Range("must be positive", lambda value: value > 0)]
Positive = Annotated[float, Range("must be positive and finite", lambda value: 0 < value < math.inf)]
Finite = Annotated[float, Range("must be finite and not negative", lambda value: 0 <= value < math.inf)]
Share = Annotated[float, Range("must be in [0, 1)", lambda value: 0 <= value < 1)]
Between = Annotated[float, Range("must be between 0 and 1", lambda value: 0 < value < 1)]
ToOne = Annotated[float, Range("must be in [0, 1]", lambda value: 0 <= value <= 1)]
Spike = Annotated[float, Range("must be more than 1, or 0 for off", lambda value: value == 0 or value > 1)]

PathText = Annotated[str, "path"]
"""A path as text; a leading `~` stands for the home folder."""
