"""The tables of the report: costs and scores of each variant. Each table is also written as a CSV file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd

from spdf_dist.accounting.flops import linears_share
from spdf_dist.accounting.parameters import linear_parameters
from spdf_dist.base.numbers import counted, short_count, signed
from spdf_dist.report.estimates import estimate
from spdf_dist.report.page import NONE, NOT_COMPUTED, TEXTS, Table
from spdf_dist.report.results import Results
from spdf_dist.report.runs import Run
from spdf_dist.report.scores import ScoreGroup, ScoreRow, metric_name
from spdf_dist.report.variants import Variant, group_by
from spdf_dist.workflow_folder import REPORT, all_jobs

CURVE_COLUMNS = ("step", "tokens", "seconds", "flops", "loss", "val_loss", "tokens_per_s")


def summary_table(results: Results) -> Table:
    """One row per variant: model, budget, validation loss, FLOPs, speed and the weights that densifying reactivated."""
    rows = [summary_row(variant) for variant in results.pretrained_variants()]
    return TEXTS.table("summary", rows, synthetic=results.synthetic)


def summary_row(variant: Variant) -> dict[str, Any]:
    """The values of the row of one variant."""
    runs, first, base = variant.runs, variant.first, variant.base
    seconds = [run.last("seconds") for run in runs if len(run.curve)]
    return {
        "variant": variant,
        "unfinished": unfinished_text(variant.members),
        "kept": linear_parameters(variant.model, first.sparsity),
        "linear": linear_parameters(variant.model),
        "share": linears_share(variant.model),
        "tokens": max(run.last("tokens") for run in runs),
        "loss": estimate(variant.losses),
        "dense_loss": estimate(base.losses) if base and not first.untrained else None,
        "execution": execution_text(first),
        "seconds": mean(seconds) if seconds else None,
        "finetuning": finetuning_text(variant.finetuning),
    }


def unfinished_text(runs: Sequence[Run]) -> str:
    """The unfinished runs of a variant, as a second line; empty when all are finished."""
    states = [run.unfinished for run in runs if run.unfinished]
    if not states:
        return ""
    return f"\n{states[0]}" if len(runs) == 1 else f"\n{len(states)} of {len(runs)} runs unfinished"


def execution_text(run: Run) -> str:
    """The execution of the sparse layers, as a second line; empty for a dense model."""
    if run.sparsity is None or run.sparsity.level == 0:
        return ""
    chosen = sorted(set((run.execution.get("layers") or {}).values())) or [run.sparsity.execution]
    return f"\n{' and '.join(chosen)}"


def finetuning_text(runs: Sequence[Run]) -> str:
    """Best validation loss of the fine-tuning runs by task, and the number of weights that densifying reactivated."""
    groups = group_by(runs, lambda run: run.task + (", sparse" if run.keep_mask else ""))
    lines = []
    for name, members in groups.items():
        best = estimate(run.finetune.get("best_val_loss", run.best_validation) for run in members)
        if best is not None:
            lines.append((f"{name}: " if len(groups) > 1 else "") + best.text())
    count = max((int(run.finetune.get("reactivated") or 0) for run in runs), default=0)
    if count and lines:
        norm = estimate(run.finetune.get("reactivated_norm") for run in runs)
        lines.append(f"{short_count(count)} reactivated" + (f", norm {norm.mean:.3g}" if norm else ""))
    return "\n".join(lines) or NONE


def score_table(group: ScoreGroup) -> Table:
    """Variants by metrics: mean ± sample deviation over seeds, and the change to dense."""
    rows = [
        {"variant": row.title} | {metric_name(metric): score_text(row, metric) for metric in group.metrics}
        for row in group.rows
    ]
    data = f"{'synthetic data in the form of ' if group.synthetic else ''}{group.title}"
    return TEXTS.table("scores", rows, name=group.file_name, synthetic=group.synthetic, data=data)


def score_text(row: ScoreRow, metric: str) -> str:
    """A score and its difference to dense: over pairs of seeds, or with fewer than two pairs between the means."""
    value = row.estimate(metric)
    if value is None:
        return NOT_COMPUTED
    digits = 2 if abs(value.mean) >= 10 else 4
    text = value.text(digits)
    dense = row.base.estimate(metric) if row.base else None
    if dense is None:
        return text
    if pairs := row.difference(metric):
        return f"{text}\n{pairs.difference_text(digits)} to dense ({counted(pairs.count, 'pair')})"
    return f"{text}\n{signed(value.mean - dense.mean, digits)} to dense"


def jobs_table(root: Path, results: Results) -> Table:
    """The state of each job of a workflow, with the reason of a failure."""
    outdated, jobs = results.outdated_jobs(root), [job for job in all_jobs(root) if job.kind != REPORT]
    rows = [{"job": job, "manifest": job.manifest(), "cause": outdated.get(job.id)} for job in jobs]
    name = root.resolve().name
    return TEXTS.table("jobs", rows, name=f"jobs-{name}", workflow=name)


def runs_table(results: Results) -> Table:
    """All runs of the report, with their layouts and folders."""
    return TEXTS.table("runs", [{"run": run, "config": run.config} for run in results.runs])


def changes_table(results: Results) -> Table:
    """What ``--change`` and ``--rewind`` changed in the runs."""
    rows = []
    for run in results.runs:
        for record in run.changes:
            for text in record["changes"]:
                key, _, values = text.partition(": ")
                old, _, new = values.partition(" -> ")
                change = {"change": key, "old": old, "new": new} if new else {"change": text, "old": "", "new": ""}
                rows.append({"run": run, "record": record} | change)
    return TEXTS.table("changes", rows)


def curves_csv(results: Results) -> str:
    """Every training step of every run, as CSV."""
    frames = []
    for run in results.runs:
        seed, losses = run.config.seed, run.validation[~run.validation.index.duplicated(keep="last")]
        kind = "finetuning" if run.is_finetuning else "pretraining"
        frame = run.curve.assign(run=str(run.path), kind=kind, variant=run.variant, size=run.size(), seed=seed)
        frames.append(frame.assign(val_loss=frame.step.map(losses), seconds=frame.seconds.map("{:.3f}".format)))
    columns = ["run", "kind", "variant", "size", "seed", *CURVE_COLUMNS]
    return pd.concat(frames)[columns].astype({"step": int}).to_csv(index=False)
