"""The figures of a report's runs and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from spdf_dist.base.numbers import power_label, short_count, time_unit
from spdf_dist.report.figures import DASHES, MARKERS, Bar, Dot, add_legend, bar_figure, dot_figure, new_axes
from spdf_dist.report.page import TEXTS, Plot
from spdf_dist.report.results import Results
from spdf_dist.report.runs import Run
from spdf_dist.report.scores import ScoreGroup, metric_name, task_title
from spdf_dist.report.style import variant_colours
from spdf_dist.report.variants import group_by

LOSS = "loss, nats per token"
X_AXES = {
    "tokens": ("tokens", short_count),
    "seconds": ("training time", None),
    "flops": ("model FLOPs", power_label),
    "step": ("optimizer steps", short_count),
}
"""Label and number format of each column of the curves as an x axis."""
MAX_POINTS = 1200
"""Maximum number of points of a line."""


def smooth(values: pd.Series) -> pd.Series:
    """Centred moving average. The first values, where the loss falls steeply, are unchanged."""
    span = max(5, len(values) // 40)
    means = values.rolling(span, center=True, min_periods=1).mean()
    means.iloc[: span // 2] = values.iloc[: span // 2]
    return means


def visible_range(curves: Sequence[pd.Series]) -> tuple[float, float] | None:
    """Limits of the y axis that show every curve except the steep first 4% of its points; None without values."""
    values = [finite for y in curves if len(finite := y[np.isfinite(y)])]
    if not values:
        return None
    low, high = min(y.min() for y in values), max(y[len(y) // 25 :].max() for y in values)
    margin = 0.06 * (high - low) or 0.1
    return low - margin, high + margin


def loss_figure(title: str, results: Results, runs: Sequence[Run], column: str, validation: bool) -> Figure:
    """The loss over a column of the curves, with a line per run.

    The variant determines the colour of a line, and the model size its style; the largest model is solid, and an
    unfinished run is thinner. Training losses are moving averages over faint values. ``validation`` shows each
    validation loss as a point instead.
    """
    sizes, colours = results.sizes, variant_colours(results.variants)
    x_label, x_format = X_AXES[column]
    scale = 1.0
    if column == "seconds":
        scale, unit = time_unit(max(run.last(column) for run in runs))
        x_label += f", {unit}"
    figure, axes = new_axes(title, x_label, "loss, nats per target token" if runs[0].is_finetuning else LOSS, 3.5)
    labels = [results.name_of(run) for run in runs]
    curves, ends = [], []
    for run, label in zip(runs, labels, strict=True):
        x, y = (run.at_validations(column), run.validation) if validation else (run.curve[column], run.curve.loss)
        x, y, colour = x.to_numpy() / scale, y.reset_index(drop=True), colours[run.variant]
        shown = np.unique(np.linspace(0, len(x) - 1, MAX_POINTS).astype(int))
        if not validation and len(x) > 30:
            axes.plot(x[shown], y[shown], color=colour, alpha=0.22, linewidth=0.8)
            y = smooth(y)
        marker = "o" if validation and len(x) <= 40 else ""
        dash = DASHES[sizes.index(run.size()) % len(DASHES)] if run.size() in sizes else DASHES[0]
        axes.plot(
            x[shown], y[shown], label=label, color=colour, linestyle=dash, linewidth=2.0 if run.finished else 1.2,
            alpha=0.75 if labels.count(label) > 1 else 1.0, marker=marker, clip_on=not marker, zorder=3, **MARKERS,
        )  # fmt: skip
        curves.append(y[shown])
        ends.append(x[-1])
    axes.set_ylim(visible_range(curves))
    axes.set_xlim(0, max(ends) or 1)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x", visible=False)
    if x_format:
        axes.xaxis.set_major_formatter(lambda value, _: x_format(value))
    add_legend(axes)
    return figure


def loss_plot(
    key: str, results: Results, runs: Sequence[Run], column: str, validation: bool, **texts: str
) -> list[Plot]:
    """A figure of the losses over a column of the curves; none where no run has losses."""
    runs = [run for run in runs if len(run.validation if validation else run.curve)]
    return [TEXTS.plot(key, loss_figure, results, runs, column, validation, **texts)] if runs else []


def pretraining_plots(results: Results) -> list[Plot]:
    """Training loss over tokens and time, and validation loss over tokens and FLOPs."""
    runs = results.ordered(results.pretraining)
    checked = [run for run in runs if len(run.validation) > 1]
    return [
        *loss_plot("loss_over_tokens", results, runs, "tokens", validation=False),
        *loss_plot("loss_over_time", results, runs, "seconds", validation=False),
        *loss_plot("validation_over_tokens", results, checked, "tokens", validation=True),
        *loss_plot("validation_over_flops", results, checked, "flops", validation=True),
    ]


def finetuning_plots(results: Results, keep_mask: bool) -> list[Plot]:
    """Losses of fine-tuning, per task. ``keep_mask`` selects the control that keeps the mask."""
    tasks = group_by((run for run in results.ordered(results.finetuning) if len(run.curve)), lambda run: run.task)
    kind, control = ("sparse fine-tuning", " The control: the mask is kept.") if keep_mask else ("fine-tuning", "")
    plots = []
    for task in sorted(tasks):
        runs = [run for run in tasks[task] if run.keep_mask == keep_mask]
        tail = (f"-{task}" if len(tasks) > 1 else "") + ("-sparse" if keep_mask else "")
        for key, validation in (("finetune_loss", False), ("finetune_validation", True)):
            texts = {"name": key + tail, "task": task_title(task), "kind": kind, "control": control}
            plots += loss_plot(key, results, runs, "step", validation, **texts)
    return plots


def score_dots(group: ScoreGroup, metric: str, colours: Mapping[str, str]) -> list[Dot]:
    """The means of a metric, with a dot per variant that has the metric."""
    dots = []
    for row in group.rows:
        if value := row.estimate(metric):
            note = f"{value.mean:.{2 if abs(value.mean) >= 10 else 3}f}"
            dots.append(Dot(row.title, colours[row.run.variant], value.mean, value.deviation, note))
    return dots


def score_plot(group: ScoreGroup, colours: Mapping[str, str]) -> list[Plot]:
    """The scores on a task's split, with a panel per metric; none without values."""
    panels = [(metric_name(name), dots) for name in group.metrics if (dots := score_dots(group, name, colours))]
    data = group.title + (" (synthetic data)" if group.synthetic else "")
    return [TEXTS.plot("scores", dot_figure, panels, name=group.file_name, data=data)] if panels else []


def cost_plots(results: Results) -> list[Plot]:
    """FLOPs and speed of each variant. Its FLOPs include one fine-tuning, on the task that most variants have."""
    colours = variant_colours(results.variants)
    variants = [variant for variant in results.pretrained_variants() if variant.flops]
    tasks = dict.fromkeys(run.task for run in results.finetuning)
    task = max(tasks, key=lambda task: sum(variant.finetuning_flops(task) > 0 for variant in variants), default="")
    cost, speed = [], []
    for variant in variants:
        label, colour, base = results.name_of(variant.first), colours[variant.name], variant.base
        after, base_after = variant.finetuning_flops(task), base.finetuning_flops(task) if base else 0.0
        note = power_label(variant.flops + after) + (", unfinished" if variant.first.unfinished else "")
        if base and after and base_after:
            note += f", {(variant.flops + after) / (base.flops + base_after):.2f}x dense"
        elif base:  # a ratio with fine-tuning needs it for both variants
            note += f", pre-training {variant.flops / base.flops:.2f}x dense"
        cost.append(Bar(label, colour, [variant.flops, after] if after else [variant.flops], note))
        if variant.speed:
            against = f", {variant.speed / base.speed:.2f}x dense" if base and base.speed else ""
            speed.append(Bar(label, colour, [variant.speed], short_count(variant.speed) + against))
    several = any(len(bar.parts) > 1 for bar in cost)
    parts = ("pre-training", f"one fine-tuning on {task_title(task)}") if several else ()
    return [
        *([TEXTS.plot("flops_spent", bar_figure, "model FLOPs", cost, parts)] if cost else []),
        *([TEXTS.plot("tokens_per_second", bar_figure, "tokens/s", speed)] if speed else []),
    ]
