"""Ratios of two products that were timed in turn: the clock, the median, and how sure it is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

CONFIDENCE = 0.95
WAIT_CYCLES = 2_000_000
"""Of a GPU, about a millisecond."""


def clock_name(threads: int) -> str:
    """`processor` for one thread, which other work on the machine does not lengthen; `wall` for more."""
    return "processor" if threads == 1 else "wall"


def clock(threads: int) -> Callable[[], float]:
    """Seconds of `clock_name`."""
    return time.process_time if clock_name(threads) == "processor" else time.perf_counter


def timed(now: Callable[[], float]) -> Callable[[Callable[[], None]], float]:
    """Seconds that a piece of work takes by a clock."""

    def seconds(work: Callable[[], None]) -> float:
        start = now()
        work()
        return now() - start

    return seconds


def timed_by_events(work: Callable[[], None]) -> float:
    """Seconds that a piece of work takes on the current CUDA device, between two events.

    The device first waits for about a millisecond, in which the CPU queues the work: its launches are not measured.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(WAIT_CYCLES)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


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
