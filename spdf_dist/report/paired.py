"""Differences between two variants, paired by the pre-training seed, and what their interval says about a claim.

The pre-training seed is the unit: scores of one seed (several fine-tuning seeds) are averaged first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import mean, stdev

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"

T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95% quantiles of Student's t for 1, 2, ... degrees of freedom; beyond them the last, which is the wider."""


@dataclass(frozen=True)
class Paired:
    """Mean of paired differences."""

    mean: float
    deviation: float | None
    """Sample deviation (n - 1); None for a single pair."""
    count: int

    @property
    def half_width(self) -> float | None:
        """Half the 95% interval of the mean; None for a single pair."""
        if self.deviation is None:
            return None
        return T_95[min(self.count - 2, len(T_95) - 1)] * self.deviation / math.sqrt(self.count)


def by_seed(values: Iterable[tuple[int, float | None]]) -> dict[int, float]:
    """The mean of the finite values of each seed."""
    groups: dict[int, list[float]] = {}
    for seed, value in values:
        if value is not None and math.isfinite(value):
            groups.setdefault(seed, []).append(value)
    return {seed: mean(group) for seed, group in groups.items()}


def minus(ours: Mapping[int, float], base: Mapping[int, float]) -> dict[int, float]:
    """Differences by seed, of the seeds that both have."""
    return {seed: ours[seed] - base[seed] for seed in sorted(ours.keys() & base.keys())}


def paired(differences: Mapping[int, float]) -> Paired | None:
    """Mean and deviation over the seeds; None without any."""
    values = list(differences.values())
    if not values:
        return None
    return Paired(mean(values), stdev(values) if len(values) > 1 else None, len(values))


def judge(value: Paired | None, threshold: float) -> str:
    """Whether ``value`` lies above ``threshold``, which is what the claim says.

    Supported when the whole 95% interval does, not supported when none of it does; undecided between, and with fewer
    than two pairs.
    """
    if value is None or value.half_width is None:
        return UNDECIDED
    if value.mean - value.half_width > threshold:
        return SUPPORTED
    return NOT_SUPPORTED if value.mean + value.half_width < threshold else UNDECIDED


def overall(verdicts: Iterable[str]) -> str:
    """One verdict over all rows of a claim: not supported where one row is not, supported only where all are."""
    seen = set(verdicts)
    if NOT_SUPPORTED in seen:
        return NOT_SUPPORTED
    return SUPPORTED if seen == {SUPPORTED} else UNDECIDED
