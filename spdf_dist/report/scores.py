"""Scores with their records, and means and deviations over seeds."""

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
"""Task name for the perplexity of plain text."""


@dataclass
class Score:
    """The metrics of one set of outputs, and the run that made them."""

    path: Path
    task: str
    metrics: dict[str, float | None]
    """Values on the scale of the official script; None for a metric that could not be computed."""
    run: Run
    split: str = ""
    """The split in the record; empty without one."""
    synthetic: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of decoding."""
    suffix: str = ""
    """The decoding settings in which this score differs from other scores of the variant."""

    @property
    def title(self) -> str:
        """The name of the table row of this score."""
        return self.run.title() + (f", {self.suffix}" if self.suffix else "")

    @property
    def split_title(self) -> str:
        """Name of the split in tables; empty for a test set without parts."""
        return find_task(self.task).split_title(self.split) if self.task in task_names() else self.split

    @property
    def pretraining_seed(self) -> int | None:
        """The seed by which variants are paired; None where the pre-training run is unknown."""
        return self.run.pretraining.seed if self.run.pretraining else None


@dataclass(frozen=True)
class Unattributed:
    """Scores in a file without a record of their checkpoint. They are listed but not compared."""

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
        """Text such as '66.21 ± 0.40 (3)' or '66.21'."""
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
    """The mean of the finite values of each seed. Values without a seed are left out."""
    groups: dict[int, list[float]] = {}
    for seed, value in values:
        if seed is not None and value is not None and math.isfinite(value):
            groups.setdefault(seed, []).append(value)
    return {seed: mean(group) for seed, group in groups.items()}


def minus(ours: Mapping[int, float], base: Mapping[int, float]) -> dict[int, float]:
    """Differences by seed, for the seeds in both mappings."""
    return {seed: ours[seed] - base[seed] for seed in sorted(ours.keys() & base.keys())}


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, such as +0.012 or −0.012."""
    text = f"{value:+.{digits}f}"
    return MINUS + text[1:] if text[0] == "-" else text


def task_title(task: str) -> str:
    """A task's name in tables."""
    return "held-out text" if task == TEXT else find_task(task).title if task in task_names() else task


def metric_name(metric: str) -> str:
    """A metric's title with an arrow in the better direction."""
    return f"{metric_title(metric)} {'↓' if lower_is_better(metric) else '↑'}"


def published_scale(task: str, metric: str, value: float) -> float:
    """A score on the scale of published tables, because papers print some metrics in percent."""
    known = find_task(task).metric(metric)
    return value * known.published_scale if known else value


def metrics_of(scores: Iterable[Score]) -> list[str]:
    """The metrics of the scores, without repetitions, in order of appearance."""
    return list(dict.fromkeys(metric for score in scores for metric in score.metrics))


def to_dense(ours: Sequence[Score], base: Sequence[Score], metric: str, digits: int) -> str:
    """The difference to dense, as text, paired by the pre-training seed.

    With fewer than two pairs, it is the difference of the means; empty without values.
    """
    own, dense = (by_seed((s.pretraining_seed, s.metrics.get(metric)) for s in scores) for scores in (ours, base))
    pairs = estimate(minus(own, dense).values())
    if pairs is not None and pairs.deviation is not None:
        return f"\n{signed(pairs.mean, digits)} ± {pairs.deviation:.{digits}f} to dense ({pairs.count} pairs)"
    ours_mean, dense_mean = (estimate(score.metrics.get(metric) for score in scores) for scores in (ours, base))
    return f"\n{signed(ours_mean.mean - dense_mean.mean, digits)} to dense" if ours_mean and dense_mean else ""
