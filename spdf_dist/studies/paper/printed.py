"""The printed results of the paper and the blog, and our results for the same models.

Sources: SPDF appendix, Tables 1 and 4 to 6, and the blog of November 28, 2022. The numbers are in CSV files: Table 1 in
this package, and the results of a task beside the task. ``spdf_dist.accounting.paper`` computes Tables 2 and 3.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from statistics import mean

import pandas as pd

from spdf_dist.accounting.paper import MODELS
from spdf_dist.base.numbers import short_count
from spdf_dist.config.schema import SparsityConfig
from spdf_dist.data.tasks import find_task
from spdf_dist.report.estimates import Estimate
from spdf_dist.report.results import Results
from spdf_dist.report.runs import Run
from spdf_dist.report.scores import ScoreRow, published_scale

TABLES = {"e2e": 4, "webnlg": 5, "dart": 6}
"""Number of the paper's table of scores, by task."""
Point = tuple[str, float]
"""A grid point of the paper: its name of the model, and the sparsity level."""


@cache
def table_1() -> dict[str, dict[str, str]]:
    """Table 1 of the paper: columns by model."""
    return pd.read_csv(Path(__file__).parent / "table_1.csv", dtype=str, index_col="model").to_dict("index")


@cache
def printed(task: str) -> dict[Point, dict[str, tuple[str, str]]]:
    """The printed results of a task by grid point and metric: (mean, deviation). A value not printed is empty."""
    frame = pd.read_csv(find_task(task).published, dtype={"mean": str, "deviation": str}, keep_default_na=False)
    return {
        point: {row.metric: (row.mean, row.deviation) for row in rows.itertuples()}
        for point, rows in frame.groupby(["model", "sparsity"], sort=False)
    }


def printed_above_dense(point: Point) -> str:
    """The only number that the blog prints for Curation Corpus: perplexity above dense. Empty where it has none."""
    return printed("curation").get(point, {}).get("perplexity_above_dense", ("", ""))[0]


def paper_model(run: Run) -> str:
    """The paper's name of a run's model if its pre-training is finished and equals the paper's; else ''.

    Pre-training differs from the paper's with another pattern, other masked matrices, another scale of the initial
    weights, or another number of tokens.
    """
    origin, config, usual = run.pretraining, run.origin, SparsityConfig()
    if origin is None or config is None or (origin.steps and origin.unfinished):
        return ""
    model, sparsity = config.model, config.sparsity
    shape = ("family", "num_layers", "hidden_size", "num_attention_heads", "ffn", "vocab_size")
    name = next((n for n, theirs in MODELS.items() if all(getattr(model, k) == getattr(theirs, k) for k in shape)), "")
    plain = (sparsity.pattern, sparsity.init_scale) == (usual.pattern, usual.init_scale)
    plain = plain and set(sparsity.targets) == set(usual.targets)
    tokens = short_count(config.training.train_tokens)
    return name if name and (plain or sparsity.level == 0) and tokens == table_1()[name]["tokens"] else ""


def our_estimate(results: Results, task: str, point: Point, metric: str) -> Estimate | None:
    """Mean and deviation of our scores on the paper's scale; None without scores.

    Only dense fine-tuning on real data and the printed split counts. Of several variants, it is the one with the lowest
    mean validation loss.
    """
    split, found = find_task(task).published_split, []
    for row in (row for group in results.score_groups() if group.task == task for row in group.rows):
        scores = [score for score in row.scores if score.split == split and not score.synthetic]
        run = row.run
        if scores and not run.keep_mask and run.sparsity and (paper_model(run), run.sparsity.level) == point:
            losses = [loss for score in scores if (loss := score.run.best_validation) is not None]
            found.append((mean(losses) if losses else math.inf, row.title, ScoreRow(row.title, scores)))
    return min(found)[-1].estimate(metric, published_scale(task, metric)) if found else None


def our_above_dense(results: Results, point: Point) -> float | None:
    """Our perplexity minus that of dense on Curation Corpus; None unless both models were run."""
    sparse, dense = (our_estimate(results, "curation", at, "perplexity") for at in (point, (point[0], 0.0)))
    return sparse.mean - dense.mean if sparse and dense else None
