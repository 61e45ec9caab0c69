"""Scores of ``spdf evaluate --json`` and ``spdf perplexity --json``, and their mean and deviation over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from spdf_dist.data.tasks import lower_is_better

METRIC_NAMES = {
    "bleu": "BLEU",
    "nist": "NIST",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "ter": "TER",
    "chrf": "chrF++",
    "perplexity": "perplexity",
    "perplexity_per_word": "perplexity per word",
    "slot_accuracy": "slot accuracy",
}
TASK_NAMES = {"e2e": "E2E", "webnlg": "WebNLG", "dart": "DART", "curation": "Curation Corpus", "text": "held-out text"}


@dataclass(frozen=True)
class Score:
    """The metrics of one set of outputs."""

    path: Path
    task: str
    variant: str
    size: str
    """The model's size in words."""
    seed: int
    metrics: dict[str, float | None]
    """As the official script prints them; None is a metric that could not be computed."""
    split: str = ""
    """`seen`, `unseen`, `all`, `validation`, ... where stated."""
    synthetic: bool = False
    settings: str = ""
    """The fine-tuning settings but for the seed and what was chosen: scores are averaged only over equal ones."""
    keep_mask: bool = False
    """Whether the fine-tuning was sparse: a control, never one of the settings of the dense one."""
    validation_loss: float | None = None
    """Best validation loss of the fine-tuning run, by which one of several settings is selected."""
    model: str = ""
    """The paper's name of the model, pre-trained to the end as the paper does; empty for any other and for controls."""
    level: float | None = None
    """Sparsity of its pre-training."""
    pretraining_seed: int | None = None
    """By which variants are paired; None where the pre-training run is not known."""

    @property
    def label(self) -> str:
        """The variant, and that it was fine-tuned sparse where it was: what is one row of a table."""
        return self.variant + (", fine-tuned sparse" if self.keep_mask else "")


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


def estimate(values: Sequence[float | None]) -> Estimate | None:
    """Mean and deviation of the finite values; None without any."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if not finite:
        return None
    return Estimate(mean(finite), stdev(finite) if len(finite) > 1 else None, len(finite))


def selected(scores: Sequence[Score]) -> list[Score]:
    """One variant's scores at one setting: that with the lowest mean validation loss (the test set never selects)."""
    groups: dict[str, list[Score]] = {}
    for score in scores:
        groups.setdefault(score.settings, []).append(score)

    def rank(group: list[Score]) -> tuple[float, str]:
        losses = [score.validation_loss for score in group if score.validation_loss is not None]
        return (mean(losses) if losses else math.inf, group[0].settings)

    return min(groups.values(), key=rank) if groups else []


def metric_name(metric: str) -> str:
    """A metric's name with the arrow of the better direction."""
    arrow = "↓" if lower_is_better(metric) else "↑"
    return f"{METRIC_NAMES.get(metric, metric.replace('_', ' '))} {arrow}"


def paper_scale(task: str, metric: str, value: float) -> float:
    """A score on the scale of the paper's Tables 4 to 6.

    The official E2E script prints BLEU, METEOR and ROUGE-L in [0, 1] and the paper prints percent; the others agree.
    """
    if task == "e2e" and metric in ("bleu", "meteor", "rouge_l"):
        return 100 * value
    return value
