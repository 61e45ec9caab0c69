"""The tables of the report: costs and scores of each variant. Each table is also written as a CSV file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import pandas as pd

from spdf_dist.accounting.flops import linears_share
from spdf_dist.accounting.parameters import linear_parameters
from spdf_dist.base.numbers import duration, power_label, short_count, signed
from spdf_dist.report.estimates import estimate
from spdf_dist.report.page import NONE, NOT_COMPUTED, TEXTS, Table
from spdf_dist.report.results import Results
from spdf_dist.report.runs import Run
from spdf_dist.report.scores import ScoreGroup, ScoreRow, metric_name, task_title
from spdf_dist.report.variants import Variant, group_by
from spdf_dist.workflow_folder import REPORT, all_jobs

CURVE_COLUMNS = ("step", "tokens", "seconds", "flops", "loss", "val_loss", "tokens_per_s")


def summary_table(results: Results) -> Table:
    """One row per variant: model, budget, validation loss, FLOPs, speed and the weights that densifying reactivated."""
    rows = [summary_row(variant) for variant in results.pretrained_variants()]
    return TEXTS.table("summary", rows, synthetic=results.synthetic)


def summary_row(variant: Variant) -> dict[str, str]:
    """The row of one variant, by column."""
    runs, first, base = variant.runs, variant.first, variant.base
    model, kept = variant.model, linear_parameters(variant.model, first.sparsity)
    loss, dense_loss = estimate(variant.losses), estimate(base.losses) if base else None
    loss_text = loss.text() if loss else NONE
    if loss and dense_loss and not first.untrained:
        loss_text += f"\n{signed(loss.mean - dense_loss.mean)} to dense"
    of_dense = f"\n{variant.flops / base.flops:.3f}x dense" if base and base.flops and variant.flops else ""
    seconds = [run.last("seconds") for run in runs if len(run.curve)]
    return {
        "variant": variant.name + unfinished_text(variant.members),
        "parameters": variant.size,
        "linear weights": f"{short_count(kept)}\n{kept / linear_parameters(model):.0%} kept",
        "linears' share of dense FLOPs": f"{linears_share(model):.0%}",
        "tokens": short_count(max(run.last("tokens") for run in runs)),
        "validation loss": loss_text,
        "pre-training FLOPs": power_label(variant.flops) + of_dense,
        "tokens/s": short_count(variant.speed) + execution_text(first) if variant.speed else NONE,
        "time in steps": duration(mean(seconds)) if seconds else NONE,
        "fine-tuned, validation loss": finetuning_text(variant.finetuning),
        "runs": str(len(variant.members)),
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
        return f"{text}\n{pairs.difference_text(digits)} to dense ({pairs.count} pairs)"
    return f"{text}\n{signed(value.mean - dense.mean, digits)} to dense"


def unattributed_table(results: Results) -> Table:
    """Scores whose files have no record of the checkpoint, split and settings."""
    rows = []
    for found in results.unattributed:
        values = [f"{name} {NONE if value is None else f'{value:.4g}'}" for name, value in found.metrics.items()]
        rows.append({"file": str(found.path), "task": task_title(found.task), "scores": ", ".join(values)})
    return TEXTS.table("unattributed", rows)


def jobs_table(root: Path, results: Results) -> Table:
    """The state of each job of a workflow, with the reason of a failure."""
    outdated = results.outdated_jobs(root)
    rows = []
    for job in (job for job in all_jobs(root) if job.kind != REPORT):
        manifest = job.manifest()
        row = {"job": job.id, "kind": job.kind, "state": str(manifest.get("status") or "not finished")}
        row |= {key: str(manifest.get(key) or NONE) for key in ("attempts", "started", "ended")}
        left_out = f"left out: {outdated[job.id]} has changed since" if job.id in outdated else ""
        rows.append(row | {"reason": str(manifest.get("reason") or "") + left_out})
    name = root.resolve().name
    return TEXTS.table("jobs", rows, name=f"jobs-{name}", workflow=name)


def runs_table(results: Results) -> Table:
    """All runs of the report, with their layouts and folders."""
    rows = []
    for run in results.runs:
        parallel, training = run.config.parallel, run.config.training
        layout = f"TP{parallel.tensor} ZeRO-{parallel.zero_stage} {training.precision}"
        kind = ("fine-tuning" if run.is_finetuning else "pre-training") + (", not chosen" if run.rejected else "")
        row = {"variant": run.variant, "kind": kind, "parameters": run.size(), "seed": str(run.config.seed)}
        row |= {"steps": f"{run.steps:,}", "peak lr": str(training.lr), "layout": layout}
        rows.append(row | {"skipped steps": str(run.skipped), "folder": str(run.path)})
    return TEXTS.table("runs", rows)


def changes_table(results: Results) -> Table:
    """What ``--change`` and ``--rewind`` changed in the runs."""
    rows = []
    for run in results.runs:
        for record in run.changes:
            row = {"variant": run.variant, "seed": str(run.config.seed), "after step": f"{record['after_step']:,}"}
            for change in record["changes"]:
                key, _, values = change.partition(": ")
                old, _, new = values.partition(" -> ")
                texts = (key, old, new) if new else (change, "", "")
                names = ("change", "old value", "new value")
                rows.append(row | {"time": record["time"]} | dict(zip(names, texts, strict=True)))
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
