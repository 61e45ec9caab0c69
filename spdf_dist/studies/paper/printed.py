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
from spdf_dist.report.results import Results
from spdf_dist.report.runs import Run
from spdf_dist.report.scores import Estimate, ScoreRow, published_scale

TABLES = {"e2e": 4, "webnlg": 5, "dart": 6}
"""Number of the paper's table of scores, by task."""
Cell = tuple[str, float]
"""(the paper's name of a model, sparsity level)."""


@cache
def table_1() -> dict[str, dict[str, str]]:
    """Table 1 of the paper: columns by model."""
    return pd.read_csv(Path(__file__).parent / "table_1.csv", dtype=str, index_col="model").to_dict("index")


@cache
def printed(task: str) -> dict[Cell, dict[str, tuple[str, str]]]:
    """The printed results of a task: (mean, deviation) by cell and metric. A value that was not printed is empty."""
    frame = pd.read_csv(find_task(task).published, dtype=str, keep_default_na=False)
    cells: dict[Cell, dict[str, tuple[str, str]]] = {}
    for row in frame.itertuples():
        cells.setdefault((row.model, float(row.sparsity)), {})[row.metric] = (row.mean, row.deviation)
    return cells


def printed_above_dense(cell: Cell) -> str:
    """The only number that the blog prints for Curation Corpus: perplexity above dense. Empty where it has none."""
    return printed("curation").get(cell, {}).get("perplexity_above_dense", ("", ""))[0]


def paper_model(run: Run) -> str:
    """The paper's name of a run's model if its pre-training is finished and equals the paper's; else ''.

    Pre-training differs from the paper's with another pattern, other masked matrices, another scale of the initial
    weights, or another number of tokens.
    """
    origin = run.pretraining
    if origin is None or (origin.steps and origin.unfinished):
        return ""
    model, sparsity, usual = origin.config.model, origin.config.sparsity, SparsityConfig()
    shape = ("family", "num_layers", "hidden_size", "num_attention_heads", "ffn", "vocab_size")
    name = next((n for n, theirs in MODELS.items() if all(getattr(model, k) == getattr(theirs, k) for k in shape)), "")
    plain = (sparsity.pattern, sparsity.init_scale) == (usual.pattern, usual.init_scale)
    plain = plain and set(sparsity.targets) == set(usual.targets)
    tokens = short_count(origin.config.training.train_tokens)
    return name if name and (plain or sparsity.level == 0) and tokens == table_1()[name]["tokens"] else ""


def our_row(results: Results, task: str, cell: Cell) -> ScoreRow | None:
    """Scores of a cell on the printed split of real data, after dense fine-tuning; None without any.

    Of several variants, only the one with the lowest mean validation loss counts.
    """
    split = find_task(task).published_split
    found = []
    for row in (row for group in results.score_groups() if group.task == task for row in group.rows):
        scores = [score for score in row.scores if score.split == split and not score.synthetic]
        if (
            scores
            and not row.run.keep_mask
            and row.run.sparsity
            and (paper_model(row.run), row.run.sparsity.level) == cell
        ):
            found.append(ScoreRow(row.title, scores))

    def rank(row: ScoreRow) -> tuple[float, str]:
        losses = [loss for score in row.scores if (loss := score.run.best_validation) is not None]
        return (mean(losses) if losses else math.inf, row.title)

    return min(found, key=rank, default=None)


def our_estimate(results: Results, task: str, cell: Cell, metric: str) -> Estimate | None:
    """Mean and deviation of our scores on the paper's scale; None without scores."""
    row = our_row(results, task, cell)
    return row.estimate(metric, published_scale(task, metric)) if row else None


def our_above_dense(results: Results, cell: Cell) -> float | None:
    """Our perplexity minus that of dense on Curation Corpus; None unless both models were run."""
    sparse, dense = (our_estimate(results, "curation", at, "perplexity") for at in (cell, (cell[0], 0.0)))
    return sparse.mean - dense.mean if sparse and dense else None
