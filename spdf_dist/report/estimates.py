"""Means over seeds with their deviation and interval, and differences that are paired by seed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from spdf_dist.base.numbers import signed

T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Two-sided 95% quantiles of Student's t for 1, 2, ... degrees of freedom."""


def t_95(freedom: int) -> float:
    """Two-sided 95% quantile of Student's t; above the table an expansion (Abramowitz and Stegun, 26.7.5)."""
    if freedom <= len(T_95):
        return T_95[freedom - 1]
    z = 1.959964  # of the normal distribution
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / freedom**k for k, term in enumerate(terms, 1))


@dataclass(frozen=True)
class Estimate:
    """Mean and sample deviation (n - 1) over seeds."""

    mean: float
    deviation: float | None
    """None for a single value."""
    count: int

    @property
    def half_width(self) -> float | None:
        """Half the width of Student's 95% interval of the mean; None for a single value."""
        return None if self.deviation is None else t_95(self.count - 1) * self.deviation / math.sqrt(self.count)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's 95% interval of the mean; None for a single value."""
        half = self.half_width
        return None if half is None else (self.mean - half, self.mean + half)

    def text(self, digits: int = 3) -> str:
        """Text such as '66.21 ± 0.40 (3)' or '66.21'."""
        if self.deviation is None:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.deviation:.{digits}f} ({self.count})"

    def difference_text(self, digits: int = 3) -> str:
        """Text of a difference over several seeds, such as '+0.012 ± 0.002'."""
        return f"{signed(self.mean, digits)} ± {self.deviation:.{digits}f}"


def estimate(values: Iterable[float | None]) -> Estimate | None:
    """Mean and deviation of the finite values; None without any."""
    finite = pd.Series(list(values), dtype=float).replace([np.inf, -np.inf], np.nan).dropna()
    if finite.empty:
        return None
    return Estimate(float(finite.mean()), float(finite.std()) if len(finite) > 1 else None, len(finite))


def paired(ours: pd.Series, base: pd.Series) -> Estimate | None:
    """The mean difference over the seeds of both; None without a common seed.

    The index has the seeds. Several values of a seed are averaged, so that each seed counts once.
    """
    return estimate(ours.groupby(level=0).mean() - base.groupby(level=0).mean())
