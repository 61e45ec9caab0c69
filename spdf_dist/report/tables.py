"""The tables of the report: costs and scores of each variant. Each table is also written as a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from spdf_dist.accounting.flops import linears_share
from spdf_dist.accounting.parameters import linear_parameters, total_parameters
from spdf_dist.report.figures import power_label, time_unit
from spdf_dist.report.results import Results
from spdf_dist.report.runs import Run, kept_linear_weights, short_count
from spdf_dist.report.scores import MINUS, Score, estimate, metric_name, metrics_of, signed, task_title, to_dense
from spdf_dist.workflow_folder import REPORT, all_jobs

NOT_RUN = "not run"
Groups = dict[tuple[str, str], list[Run]]
"""Runs by (size, variant)."""


@dataclass
class Table:
    """A table of text cells. After a line break in a cell, the text is smaller."""

    name: str
    """File name of the CSV, without suffix."""
    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    synthetic: bool = False
    labels: int = 1
    """Number of leading columns that are labels."""
    marks: set[tuple[int, int]] = field(default_factory=set)
    """Cells (row, column) to highlight: numbers that differ from the printed ones."""

    def csv(self) -> str:
        """The table as CSV. A semicolon joins the lines of a cell, and minus signs are ASCII."""
        kind = ["synthetic"] if self.synthetic else []
        rows = [[cell.replace("\n", "; ").replace(MINUS, "-") for cell in row] + kind for row in self.rows]
        return csv_text([self.header + (["data"] if self.synthetic else []), *rows])


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def duration(seconds: float) -> str:
    """A duration as text, such as '3.2 hours'."""
    scale, unit = time_unit(seconds)
    return f"{seconds / scale:.1f} {unit}"


def by_variant(runs: Sequence[Run]) -> Groups:
    """Runs by (size, variant), in the order given."""
    groups: Groups = {}
    for run in runs:
        groups.setdefault((run.size(), run.variant), []).append(run)
    return groups


def finished(runs: Sequence[Run]) -> list[Run]:
    """The runs to compare: the finished ones, or all runs if none is finished."""
    return [run for run in runs if not run.unfinished] or list(runs)


def is_dense(run: Run) -> bool:
    """Whether ``run`` is a dense baseline."""
    return run.sparsity is not None and run.sparsity.level == 0 and not run.untrained


def named_dense(names: Iterable[str]) -> str | None:
    """The name of the dense variant, 'dense' or '...-dense' before others; None without one."""
    found = [name for name in names if name.startswith("dense") or name.endswith("-dense")]
    return min(found, key=lambda name: name != "dense" and not name.endswith("-dense"), default=None)


def baseline_row(rows: Mapping[str, Run], name: str) -> str | None:
    """The dense row to compare ``name`` with; None where it is ambiguous.

    Of several dense rows, it is the one whose other settings equal those of ``name``, else the one with a plain name,
    such as ``dense`` rather than ``stopped``.
    """
    dense = [row for row, run in rows.items() if is_dense(run) and not run.keep_mask]
    if len(dense) < 2:
        return next((row for row in dense if row != name), None)
    equal = [row for row in dense if row != name and other_settings(rows[row]) == other_settings(rows[name])]
    plain = named_dense(row for row in dense if "," not in row)
    return equal[0] if len(equal) == 1 else plain if plain != name else None


def other_settings(run: Run) -> dict[str, object]:
    """The settings of a run and of its pre-training, except those of sparsity."""
    own: dict[str, object] = {key: value for key, value in run.settings.items() if not key.startswith("sparsity.")}
    return own | ({"parent": other_settings(run.parent)} if run.parent else {})


def dense_baseline(groups: Groups, size: str, variant: str) -> list[Run]:
    """The finished dense runs to compare a variant with; empty without any, or when the variant is not finished."""
    rows = {name: finished(members)[0] for (other, name), members in groups.items() if other == size}
    base = baseline_row(rows, variant)
    if base is None or rows[base].unfinished or rows[variant].unfinished:
        return []
    return finished(groups[size, base])


def ordered(results: Results, runs: Sequence[Run]) -> list[Run]:
    """Runs sorted by size, then variant (untrained, dense, then by increasing sparsity), then seed."""
    place = {name: k for k, name in enumerate(results.variants)}

    def key(run: Run) -> tuple[int, int, int]:
        return (total_parameters(run.model) if run.model else 0, place.get(run.variant, len(place)), run.seed)

    return sorted(runs, key=key)


def mean_final(runs: Sequence[Run]) -> float | None:
    """Mean final validation loss, nats per token; None without any."""
    value = estimate(run.final_validation for run in runs)
    return value.mean if value else None


def mean_flops(runs: Sequence[Run]) -> float:
    """Mean model FLOPs of the runs."""
    return mean([run.flops[-1] if run.flops else 0.0 for run in runs])


def mean_speed(runs: Sequence[Run]) -> float | None:
    """Mean over the runs of their median tokens/s; None without any."""
    speeds = [run.median_speed for run in runs if run.median_speed]
    return mean(speeds) if speeds else None


def summary_table(results: Results) -> Table:
    """One row per variant: model, budget, validation loss, FLOPs, speed and the weights that densifying reactivated."""
    groups = by_variant(ordered(results, results.pretraining))
    tuned = by_variant(results.finetuning)
    rows = [summary_row(groups, tuned, size, variant) for size, variant in groups]
    header = (
        "variant|parameters|linear weights|linears' share of dense FLOPs|tokens|validation loss|pre-training FLOPs|"
    )
    header += "tokens/s|time in steps|fine-tuned, validation loss|runs"
    return Table(
        "summary",
        "What each variant cost",
        header.split("|"),
        rows,
        "Validation loss in nats per token after the last step; with several seeds mean ± sample deviation (number). "
        "FLOPs are model FLOPs as the paper counts them, without recomputation or multiplied zeros. Only runs that "
        "differ in their seeds are averaged; unfinished runs are neither averaged with finished ones nor compared.",
        results.synthetic,
    )


def summary_row(groups: Groups, tuned: Groups, size: str, variant: str) -> list[str]:
    """The row of one variant."""
    members = groups[size, variant]
    runs = finished(members)
    first, base = runs[0], dense_baseline(groups, size, variant)
    model, kept = first.config.model, kept_linear_weights(first) or 0
    loss = estimate(run.final_validation for run in runs)
    loss_text = loss.text() if loss else "–"
    base_loss = mean_final(base)
    if loss and base_loss is not None and not first.untrained:
        loss_text += f"\n{signed(loss.mean - base_loss)} to dense"
    flops = mean_flops(runs)
    flops_text = power_label(flops) if flops else "0"
    if base and flops and mean_flops(base):
        flops_text += f"\n{flops / mean_flops(base):.3f}x dense"
    speed = mean_speed(runs)
    seconds = [run.seconds[-1] for run in runs if run.seconds]
    return [
        variant + unfinished_text(members),
        size,
        f"{short_count(kept)}\n{kept / linear_parameters(model):.0%} kept",
        f"{linears_share(model):.0%}",
        short_count(max((run.tokens[-1] for run in runs if run.tokens), default=0)),
        loss_text,
        flops_text,
        short_count(speed) + execution_text(first) if speed else "–",
        duration(mean(seconds)) if seconds else "–",
        finetuning_text(tuned.get((size, variant), [])),
        str(len(members)),
    ]


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
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.task + (", sparse" if run.keep_mask else ""), []).append(run)
    lines = []
    for name, members in groups.items():
        best = estimate(run.finetune.get("best_val_loss", run.best_validation) for run in members)
        if best is not None:
            lines.append((f"{name}: " if len(groups) > 1 else "") + best.text())
    count = max((int(run.finetune.get("reactivated") or 0) for run in runs), default=0)
    if count and lines:
        norm = estimate(run.finetune.get("reactivated_norm") for run in runs)
        lines.append(f"{short_count(count)} reactivated" + (f", norm {norm.mean:.3g}" if norm else ""))
    return "\n".join(lines) or "–"


ScoreGroups = dict[tuple[str, str, str], dict[str, list[Score]]]
"""Scores by (task, title of the split, size), then by row."""


def score_groups(results: Results) -> ScoreGroups:
    """The scores in reading order. Dense fine-tuning of a variant comes before sparse fine-tuning."""
    groups: ScoreGroups = {}
    place = {name: k for k, name in enumerate(results.variants)}
    for score in sorted(results.scores, key=lambda score: (place[score.run.variant], score.run.keep_mask)):
        rows = groups.setdefault((score.task, score.split_title, score.run.size()), {})
        rows.setdefault(score.title, []).append(score)
    return groups


def score_baseline(group: dict[str, list[Score]], name: str) -> list[Score]:
    """The dense scores with the same decoding to compare the row ``name`` with; empty without any."""
    alike = {row: scores[0] for row, scores in group.items() if scores[0].suffix == group[name][0].suffix}
    titles = {score.run.title(): row for row, score in alike.items()}
    base = baseline_row({score.run.title(): score.run for score in alike.values()}, alike[name].run.title())
    return group[titles[base]] if base else []


def group_title(task: str, split: str, size: str) -> str:
    """The heading of a group of scores."""
    parts = [task_title(task), split, f"{size} parameters" if size not in ("", "?") else ""]
    return ", ".join(part for part in parts if part)


def file_name(task: str, split: str, size: str) -> str:
    """The file name of a group of scores, without suffix."""
    return "-".join(part for part in ("scores", task, split, size) if part not in ("", "?")).replace(" ", "_")


def score_tables(results: Results) -> list[Table]:
    """A table per task, split and size: variants by metrics, mean ± sample deviation over seeds, change to dense."""
    tables = []
    for key, group in score_groups(results).items():
        metrics = metrics_of(score for scores in group.values() for score in scores)
        rows = [score_row(group, name, metrics) for name in group]
        synthetic = any(score.synthetic for scores in group.values() for score in scores)
        tables.append(
            Table(
                file_name(*key),
                f"Scores on {'synthetic data in the form of ' if synthetic else ''}{group_title(*key)}",
                ["variant", *(metric_name(metric) for metric in metrics)],
                rows,
                "On the scale that the official script prints; mean ± sample deviation (runs). Seeds may differ in "
                "what a selection by validation chose for each. Differences are paired by the pre-training seed.",
                synthetic,
            )
        )
    return tables


def score_row(group: dict[str, list[Score]], name: str, metrics: Sequence[str]) -> list[str]:
    """The row of one variant."""
    scores, base = group[name], score_baseline(group, name)
    row = [name]
    for metric in metrics:
        value = estimate(score.metrics.get(metric) for score in scores)
        if value is None:
            row.append("not computed")
            continue
        digits = 2 if abs(value.mean) >= 10 else 4
        row.append(value.text(digits) + (to_dense(scores, base, metric, digits) if base else ""))
    return row


def unattributed_table(results: Results) -> Table:
    """Scores whose files have no record of the checkpoint, split and settings."""
    rows = [
        [str(found.path), task_title(found.task)]
        + [", ".join(f"{name} {'–' if value is None else f'{value:.4g}'}" for name, value in found.metrics.items())]
        for found in results.unattributed
    ]
    return Table(
        "unattributed",
        "Scores without a record of what was scored",
        ["file", "task", "scores"],
        rows,
        "These files do not say which checkpoint, split and settings they are of, so they are not compared. Texts that "
        "`spdf generate` writes carry such a record, and `spdf evaluate --json` passes it on.",
        labels=3,
    )


def jobs_table(root: Path, results: Results) -> Table:
    """The state of each job of a workflow, with the reason of a failure."""
    outdated = results.outdated.get(root.resolve(), {})
    rows = []
    for job in (job for job in all_jobs(root) if job.kind != REPORT):
        manifest = job.manifest()
        state = str(manifest.get("status") or "not finished")
        told = [str(manifest.get(key) or "–") for key in ("attempts", "started", "ended")]
        left_out = f"left out: {outdated[job.id]} was made anew since" if job.id in outdated else ""
        rows.append([job.id, job.kind, state, *told, str(manifest.get("reason") or "") + left_out])
    name = root.resolve().name
    header = ["job", "kind", "state", "attempts", "started", "ended", "reason"]
    return Table(f"jobs-{name}", f"Jobs of {name}", header, rows, labels=3)


def runs_table(results: Results) -> Table:
    """All runs of the report, with their layouts and folders."""
    rows = []
    for run in results.runs:
        parallel, training = run.tree.get("parallel") or {}, run.tree.get("training") or {}
        layout = f"TP{parallel.get('tensor', 1)} ZeRO-{parallel.get('zero_stage', 1)} {training.get('precision', '')}"
        kind = "fine-tuning" if run.is_finetuning else "pre-training"
        steps = f"{run.step[-1]:,}" if run.step else "0"
        row = [run.variant, kind + (", not chosen" if run.rejected else ""), run.size(), str(run.seed), steps]
        rows.append([*row, f"{training.get('lr', '–')}", layout, str(run.skipped), str(run.path)])
    return Table(
        "runs",
        "Runs of this report",
        ["variant", "kind", "parameters", "seed", "steps", "peak lr", "layout", "skipped steps", "folder"],
        rows,
        "The same seed means the same initial weights, data order and (with equal sparsity seed) mask.",
        labels=2,
    )


def changes_table(results: Results) -> Table | None:
    """What ``--change`` and ``--rewind`` changed in the runs; None if nothing was changed."""
    rows = []
    for run in results.runs:
        for step, when, change in run.changes:
            key, _, values = change.partition(": ")
            old, _, new = values.partition(" -> ")
            rows.append(
                [run.variant, str(run.seed), f"{step:,}", when, *([key, old, new] if new else [change, "", ""])]
            )
    if not rows:
        return None
    header = ["variant", "seed", "after step", "time", "change", "old value", "new value"]
    note = "The run continued after this step with the new values (--change) or other batches (--rewind)."
    return Table("changes", "Changes during the runs", header, rows, note, labels=7)


def curve_rows(results: Results) -> str:
    """Every training step of every run, as CSV."""
    header = [
        "run",
        "kind",
        "variant",
        "size",
        "seed",
        "step",
        "tokens",
        "seconds",
        "flops",
        "loss",
        "val_loss",
        "tokens_per_s",
    ]
    rows: list[list[object]] = [list(header)]
    for run in results.runs:
        validation = dict(run.validation)
        kind = "finetuning" if run.is_finetuning else "pretraining"
        label = [str(run.path), kind, run.variant, run.size(), run.seed]
        steps = zip(run.step, run.tokens, run.seconds, run.flops, run.loss, run.tokens_per_s, strict=True)
        for step, tokens, seconds, flops, loss, speed in steps:
            rows.append([*label, step, tokens, f"{seconds:.3f}", flops, loss, validation.get(step, ""), speed])
    return csv_text(rows)
