"""Scores with their records, grouped into the rows of tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from spdf_dist.data.tasks import find_task, lower_is_better, metric_title
from spdf_dist.extensions import task_names
from spdf_dist.report.estimates import Estimate, estimate, paired
from spdf_dist.report.runs import Run
from spdf_dist.report.variants import dense_baseline, group_by

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


@dataclass
class ScoreRow:
    """Scores that differ only in their seeds."""

    title: str
    scores: list[Score]
    base: ScoreRow | None = None
    """The dense row with the same decoding to compare with."""

    @property
    def run(self) -> Run:
        """The run of the first score."""
        return self.scores[0].run

    def estimate(self, metric: str, scale: float = 1.0) -> Estimate | None:
        """Mean and deviation of a metric, multiplied by ``scale``."""
        return estimate(self.by_seed(metric) * scale)

    def by_seed(self, metric: str) -> pd.Series:
        """The values of a metric, with the seeds of pre-training as index; NaN for an unknown seed."""
        seeds = [score.run.origin.seed if score.run.origin else None for score in self.scores]
        return pd.Series([score.metrics.get(metric) for score in self.scores], seeds, dtype=float)

    def difference(self, metric: str) -> Estimate | None:
        """The mean difference to dense over the pre-training seeds of both; None with fewer than two."""
        value = paired(self.by_seed(metric), self.base.by_seed(metric)) if self.base else None
        return value if value and value.count > 1 else None


@dataclass
class ScoreGroup:
    """The scores of models of one size on a split of a task."""

    task: str
    split: str
    """Title of the split."""
    size: str
    rows: list[ScoreRow]

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics of the scores, in order of appearance."""
        return list(dict.fromkeys(metric for row in self.rows for score in row.scores for metric in score.metrics))

    @property
    def synthetic(self) -> bool:
        """Whether a score is of synthetic data."""
        return any(score.synthetic for row in self.rows for score in row.scores)

    @property
    def title(self) -> str:
        """Heading of a table or figure."""
        parts = [task_title(self.task), self.split, "" if self.size == "?" else f"{self.size} parameters"]
        return ", ".join(filter(None, parts))

    @property
    def file_name(self) -> str:
        """File name of a table or figure, without suffix."""
        parts = ["scores", self.task, self.split, "" if self.size == "?" else self.size]
        return "-".join(filter(None, parts)).replace(" ", "_")


def group_scores(scores: Sequence[Score], variants: Sequence[str]) -> list[ScoreGroup]:
    """The scores in the order of ``variants``. Dense fine-tuning of a variant comes before sparse fine-tuning."""
    place = {name: k for k, name in enumerate(variants)}
    scores = sorted(scores, key=lambda score: (place[score.run.variant], score.run.keep_mask))
    groups = []
    for key, members in group_by(scores, lambda score: (score.task, score.split_title, score.run.size())).items():
        rows = [ScoreRow(title, found) for title, found in group_by(members, lambda score: score.title).items()]
        for row in rows:
            alike = {other.run.title(): other for other in rows if other.scores[0].suffix == row.scores[0].suffix}
            runs = {name: other.run for name, other in alike.items()}
            row.base = alike.get(dense_baseline(row.run.title(), runs))
        groups.append(ScoreGroup(*key, rows))
    return groups


def task_title(task: str) -> str:
    """A task's name in tables."""
    return "held-out text" if task == TEXT else find_task(task).title if task in task_names() else task


def metric_name(metric: str) -> str:
    """A metric's title with an arrow in the better direction."""
    return f"{metric_title(metric)} {'↓' if lower_is_better(metric) else '↑'}"


def published_scale(task: str, metric: str) -> float:
    """The factor from a score to the scale of published tables, because papers print some metrics in percent."""
    known = find_task(task).metric(metric)
    return known.published_scale if known else 1.0
