"""Scores as their commands recorded them, and their mean and deviation over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from spdf_dist.data.tasks import find_task, lower_is_better, metric_title
from spdf_dist.extensions import task_names
from spdf_dist.report.runs import Run

MINUS = "−"
TEXT = "text"
"""The task of a perplexity that is not of a task."""


@dataclass
class Score:
    """The metrics of one set of outputs, and the run that made them."""

    path: Path
    task: str
    metrics: dict[str, float | None]
    """As the official script prints them; None is a metric that could not be computed."""
    run: Run
    split: str = ""
    """As the command recorded it."""
    synthetic: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    """Of decoding."""
    suffix: str = ""
    """The decoding settings in which the variant has several scores."""

    @property
    def title(self) -> str:
        """The row of a table that this score belongs to."""
        return self.run.title() + (f", {self.suffix}" if self.suffix else "")

    @property
    def split_title(self) -> str:
        """The split in tables: empty for a test set as a whole."""
        return find_task(self.task).split_title(self.split) if self.task in task_names() else self.split

    @property
    def pretraining_seed(self) -> int | None:
        """By which variants are paired; None where the pre-training run is not known."""
        return self.run.pretraining.seed if self.run.pretraining else None


@dataclass(frozen=True)
class Unattributed:
    """Scores in a file that does not say what was scored: they are listed and not compared."""

    path: Path
    task: str
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class Estimate:
    """Mean and sample deviation (n - 1) over seeds."""

    mean: float
    deviation: float | None
    """None for a single value."""
    count: int

    def text(self, digits: int = 3) -> str:
        """Such as '66.21 ± 0.40 (3)' or '66.21'."""
        if self.deviation is None:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.deviation:.{digits}f} ({self.count})"


def estimate(values: Iterable[float | None]) -> Estimate | None:
    """Mean and deviation of the finite values; None without any."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if not finite:
        return None
    return Estimate(mean(finite), stdev(finite) if len(finite) > 1 else None, len(finite))


def by_seed(values: Iterable[tuple[int | None, float | None]]) -> dict[int, float]:
    """The mean of the finite values of each seed; values without a seed are left out."""
    groups: dict[int, list[float]] = {}
    for seed, value in values:
        if seed is not None and value is not None and math.isfinite(value):
            groups.setdefault(seed, []).append(value)
    return {seed: mean(group) for seed, group in groups.items()}


def minus(ours: Mapping[int, float], base: Mapping[int, float]) -> dict[int, float]:
    """Differences by seed, of the seeds that both have."""
    return {seed: ours[seed] - base[seed] for seed in sorted(ours.keys() & base.keys())}


def signed(value: float, digits: int = 3) -> str:
    """+0.012 or −0.012."""
    text = f"{value:+.{digits}f}"
    return MINUS + text[1:] if text[0] == "-" else text


def task_title(task: str) -> str:
    """A task's name in tables."""
    return "held-out text" if task == TEXT else find_task(task).title if task in task_names() else task


def metric_name(metric: str) -> str:
    """A metric's name with the arrow of the better direction."""
    return f"{metric_title(metric)} {'↓' if lower_is_better(metric) else '↑'}"


def published_scale(task: str, metric: str, value: float) -> float:
    """A score on the scale of published tables: papers print some metrics in percent."""
    known = find_task(task).metric(metric)
    return value * known.published_scale if known else value


def metrics_of(scores: Iterable[Score]) -> list[str]:
    """The metrics that any of the scores has, in the order of the task."""
    return list(dict.fromkeys(metric for score in scores for metric in score.metrics))


def to_dense(ours: Sequence[Score], base: Sequence[Score], metric: str, digits: int) -> str:
    """The difference to dense, paired by the pre-training seed; of means where fewer than two seeds have both."""
    own, dense = (by_seed((s.pretraining_seed, s.metrics.get(metric)) for s in scores) for scores in (ours, base))
    pairs = estimate(minus(own, dense).values())
    if pairs is not None and pairs.deviation is not None:
        return f"\n{signed(pairs.mean, digits)} ± {pairs.deviation:.{digits}f} to dense ({pairs.count} pairs)"
    ours_mean, dense_mean = (estimate(score.metrics.get(metric) for score in scores) for scores in (ours, base))
    return f"\n{signed(ours_mean.mean - dense_mean.mean, digits)} to dense" if ours_mean and dense_mean else ""
