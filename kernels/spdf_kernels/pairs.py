"""Ratios of two products that were timed in turn: the clock, the median, and how sure it is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

CONFIDENCE = 0.95


def clock_name(threads: int) -> str:
    """`processor` for one thread, which other work on the machine does not lengthen; `wall` for more."""
    return "processor" if threads == 1 else "wall"


def clock(threads: int) -> Callable[[], float]:
    """Seconds of `clock_name`."""
    return time.process_time if clock_name(threads) == "processor" else time.perf_counter


def median_and_bound(ratios: Sequence[float]) -> tuple[float, float]:
    """(median, its lower confidence bound): an order statistic, 95% one-sided by signs, free of any distribution.

    Fewer than five ratios do not carry 95%; then the bound is the smallest of them.
    """
    ordered = sorted(ratios)
    n = len(ordered)
    rank, tail, term = 0, 0.0, 0.5**n
    while rank < n and tail + term <= 1.0 - CONFIDENCE:
        tail += term
        term = term * (n - rank) / (rank + 1)
        rank += 1
    return statistics.median(ordered), ordered[max(0, rank - 1)]
