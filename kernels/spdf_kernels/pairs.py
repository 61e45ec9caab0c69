"""Ratios of two products that are timed in turn: the clock, the median and its confidence bound."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

CONFIDENCE = 0.95
WAIT_CYCLES = 2_000_000
"""GPU cycles of the wait before a measurement, about a millisecond."""


def clock_name(threads: int) -> str:
    """`processor` for one thread, whose time does not include other load; `wall` for more."""
    return "processor" if threads == 1 else "wall"


def clock(threads: int) -> Callable[[], float]:
    """The clock of `clock_name`, a function that returns seconds."""
    return time.process_time if clock_name(threads) == "processor" else time.perf_counter


def timed(now: Callable[[], float]) -> Callable[[Callable[[], None]], float]:
    """A function that returns the seconds of a piece of work by the clock `now`."""

    def seconds(work: Callable[[], None]) -> float:
        start = now()
        work()
        return now() - start

    return seconds


def timed_by_events(work: Callable[[], None]) -> float:
    """Seconds of a piece of work on the current CUDA device, between two events.

    The device first waits for about a millisecond while the CPU queues the work, so launches are not measured.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(WAIT_CYCLES)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def median_and_bound(ratios: Sequence[float]) -> tuple[float, float]:
    """(median, its lower confidence bound). The bound is an order statistic: one-sided, 95%, by the sign test.

    Fewer than five ratios do not allow 95%; the bound is then the smallest ratio.
    """
    ordered = sorted(ratios)
    n = len(ordered)
    rank, tail, term = 0, 0.0, 0.5**n
    while rank < n and tail + term <= 1.0 - CONFIDENCE:
        tail += term
        term = term * (n - rank) / (rank + 1)
        rank += 1
    return statistics.median(ordered), ordered[max(0, rank - 1)]
