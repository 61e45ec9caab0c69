"""The printed results of the paper and the blog, and our results for the same models.

Sources: SPDF appendix, Tables 1 and 4 to 6, and the blog of November 28, 2022. The numbers are in CSV files: Table 1 in
this package, and the results of a task beside the task. ``spdf_dist.accounting.paper`` computes Tables 2 and 3.
"""

from __future__ import annotations

import csv
import math
from functools import cache
from pathlib import Path
from statistics import mean

from spdf_dist.accounting.paper import MODELS
from spdf_dist.data.tasks import find_task
from spdf_dist.report.results import Results
from spdf_dist.report.runs import Run, short_count
from spdf_dist.report.scores import Estimate, Score, estimate, published_scale

TABLES = {"e2e": 4, "webnlg": 5, "dart": 6}
"""Number of the paper's table of scores, by task."""
ABOVE_DENSE = "perplexity_above_dense"
"""The only metric that the blog prints for Curation Corpus."""
Cell = tuple[str, float]
"""(the paper's name of a model, sparsity level)."""


@cache
def table_1() -> dict[str, dict[str, str]]:
    """Table 1 of the paper: columns by model."""
    with (Path(__file__).parent / "table_1.csv").open(encoding="utf-8") as file:
        return {row.pop("model"): row for row in csv.DictReader(file)}


@cache
def printed(task: str) -> dict[Cell, dict[str, tuple[str, str]]]:
    """The printed results of a task: (mean, deviation) by cell and metric. A value that was not printed is empty."""
    path = find_task(task).published
    assert path is not None
    cells: dict[Cell, dict[str, tuple[str, str]]] = {}
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            metrics = cells.setdefault((row["model"], float(row["sparsity"])), {})
            metrics[row["metric"]] = (row["mean"], row["deviation"])
    return cells


def paper_model(run: Run) -> str:
    """The paper's name of a run's model if its pre-training is finished and equals the paper's; else ''.

    Pre-training differs from the paper's with another pattern, other masked matrices, another scale of the initial
    weights, or another number of tokens.
    """
    origin = run.pretraining
    if origin is None or (origin.step and origin.unfinished):
        return ""
    model, sparsity = origin.config.model, origin.config.sparsity
    for name, theirs in MODELS.items():
        keys = ("family", "num_layers", "hidden_size", "num_attention_heads", "ffn", "vocab_size")
        if all(getattr(model, key) == getattr(theirs, key) for key in keys):
            default = type(sparsity)()
            plain = (sparsity.pattern, sorted(sparsity.targets), sparsity.init_scale) == (
                default.pattern,
                sorted(default.targets),
                default.init_scale,
            )
            tokens = short_count(origin.config.training.train_tokens)
            return name if (plain or sparsity.level == 0) and tokens == table_1()[name]["tokens"] else ""
    return ""


def our_scores(results: Results, task: str, cell: Cell) -> list[Score]:
    """Scores of a cell on the printed split of real data, after dense fine-tuning.

    Of several variants, only the one with the lowest mean validation loss counts.
    """
    groups: dict[str, list[Score]] = {}
    for score in results.scores:
        run = score.run
        if (
            score.task == task
            and not (score.synthetic or run.keep_mask)
            and score.split == find_task(task).published_split
            and run.sparsity is not None
            and (paper_model(run), run.sparsity.level) == cell
        ):
            groups.setdefault(score.title, []).append(score)

    def rank(group: list[Score]) -> tuple[float, str]:
        losses = [loss for score in group if (loss := score.run.best_validation) is not None]
        return (mean(losses) if losses else math.inf, group[0].title)

    return min(groups.values(), key=rank) if groups else []


def our_estimate(results: Results, task: str, cell: Cell, metric: str) -> Estimate | None:
    """Mean and deviation of our scores on the paper's scale; None without scores."""
    values = (score.metrics.get(metric) for score in our_scores(results, task, cell))
    return estimate(None if value is None else published_scale(task, metric, value) for value in values)


def our_perplexity_above_dense(results: Results, cell: Cell) -> float | None:
    """Our perplexity minus that of dense on Curation Corpus; None unless both models were run."""
    sparse, dense = (our_estimate(results, "curation", at, "perplexity") for at in (cell, (cell[0], 0.0)))
    return sparse.mean - dense.mean if sparse and dense else None
