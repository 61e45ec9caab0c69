"""Selects the figures of a report from its runs and scores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from spdf_dist.accounting.parameters import total_parameters
from spdf_dist.base.numbers import power_label, short_count, time_unit
from spdf_dist.report.figures import Bar, Dot, Series, bar_figure, dot_figure, line_figure
from spdf_dist.report.page import Plot
from spdf_dist.report.results import Results
from spdf_dist.report.runs import Run
from spdf_dist.report.scores import metric_name, task_title
from spdf_dist.report.style import variant_colours
from spdf_dist.report.variants import group_by, mean_flops

LOSS = "loss, nats per token"
TARGET_LOSS = "loss, nats per target token"
X_AXES = {
    "tokens": ("tokens", short_count),
    "seconds": ("time in training steps", None),
    "flops": ("model FLOPs spent", power_label),
    "step": ("optimizer steps", short_count),
}
"""Label and number format of each column of the curves as an x axis."""


def result_plots(results: Results) -> list[Plot]:
    """Every figure for which the results have data."""
    return [*pretraining_plots(results), *finetuning_plots(results), *score_plots(results), *cost_plots(results)]


def run_label(results: Results, run: Run) -> str:
    """The variant, with the model size where the report has several sizes."""
    sizes = {other.size() for other in results.pretraining}
    return f"{run.variant}, {run.size()}" if len(sizes) > 1 else run.variant


def loss_plot(
    results: Results,
    runs: Sequence[Run],
    section: str,
    name: str,
    column: str,
    title: str,
    caption: str,
    validation: bool = False,
) -> list[Plot]:
    """The loss over a column of the curves, with a line per run; none where no run has losses.

    The variant determines the colour of a line, and the model size its style; the largest model is solid.
    ``validation`` shows each validation loss as a point, rather than smoothed training losses.
    """
    counts = {run.size(): total_parameters(run.model) for run in results.pretraining if run.model}
    sizes = sorted(counts, key=lambda size: -counts[size])
    colours = variant_colours(results.variants)
    runs = [run for run in runs if len(run.validation if validation else run.curve)]
    if not runs:
        return []
    x_label, x_format = X_AXES[column]
    scale = 1.0
    if column == "seconds":
        scale, unit = time_unit(max(run.last(column) for run in runs))
        x_label += f", {unit}"
    lines = []
    for run in runs:
        x, y = (run.at_validations(column), run.validation) if validation else (run.curve[column], run.curve.loss)
        dash = sizes.index(run.size()) if run.size() in sizes else 0
        lines.append(Series(run_label(results, run), colours[run.variant], x / scale, y, dash, run.finished))
    y_label = TARGET_LOSS if runs[0].is_finetuning else LOSS
    draw = partial(line_figure, title, x_label, y_label, lines, points=validation, x_format=x_format)
    return [Plot(name, section, caption, draw)]


def pretraining_plots(results: Results) -> list[Plot]:
    """Training loss over tokens and time, and validation loss over tokens and FLOPs."""
    runs = results.ordered(results.pretraining)
    checked = [run for run in runs if len(run.validation) > 1]
    training = partial(loss_plot, results, runs, "Pre-training")
    validation = partial(loss_plot, results, checked, "Pre-training", validation=True)
    raw = "Training loss: the faint line is each step, the strong one a moving average."
    time = "The same over the time spent in training steps, without validation and saving."
    held_out = "Validation loss on held-out sequences."
    flops = "The same over model FLOPs. Further left is cheaper."
    return [
        *training("loss_over_tokens", "tokens", "Training loss over tokens", raw),
        *training("loss_over_time", "seconds", "Training loss over wall-clock", time),
        *validation("validation_over_tokens", "tokens", "Validation loss over tokens", held_out),
        *validation("validation_over_flops", "flops", "Validation loss over FLOPs", flops),
    ]


def finetuning_plots(results: Results) -> list[Plot]:
    """Losses of fine-tuning, per task, and separately for the control that keeps the mask."""
    runs = [run for run in results.ordered(results.finetuning) if len(run.curve)]
    groups = group_by(runs, lambda run: (run.keep_mask, run.task))
    several = len({task for _, task in groups}) > 1
    plots = []
    for (keep_mask, task), members in sorted(groups.items(), key=lambda item: item[0]):
        tail = (f"-{task}" if several else "") + ("-sparse" if keep_mask else "")
        what = "sparse fine-tuning" if keep_mask else "fine-tuning"
        plot = partial(loss_plot, results, members, "Sparse fine-tuning" if keep_mask else "Dense fine-tuning")
        name, control = task_title(task), " The control: the mask is kept." if keep_mask else ""
        smoothing = "(label smoothing included where it is set)"
        caption = f"{name}: training loss on target tokens {smoothing}.{control}"
        plots += plot(f"finetune_loss{tail}", "step", f"{name}: {what} loss over steps", caption)
        title, caption = f"{name}: {what} validation loss over steps", f"{name}: validation loss, unsmoothed.{control}"
        plots += plot(f"finetune_validation{tail}", "step", title, caption, validation=True)
    return plots


def score_plots(results: Results) -> list[Plot]:
    """A figure per task, split and size, with a panel per metric and a row per variant."""

    def note(value: float) -> str:
        return f"{value:.{2 if abs(value) >= 10 else 3}f}"

    colours = variant_colours(results.variants)
    plots = []
    for group in results.score_groups():
        panels = []
        for metric in group.metrics:
            values = [(row, value) for row in group.rows if (value := row.estimate(metric))]
            dots = [
                Dot(row.title, colours[row.run.variant], value.mean, value.deviation, note(value.mean))
                for row, value in values
            ]
            if dots:
                panels.append((metric_name(metric), dots))
        if panels:
            title = group.title + (" (synthetic data)" if group.synthetic else "")
            caption = "Mean over seeds; bars are the sample deviation. The arrow shows the better direction."
            plots.append(Plot(group.file_name, "Scores", caption, partial(dot_figure, title, panels)))
    return plots


def cost_plots(results: Results) -> list[Plot]:
    """FLOPs and speed of each variant. Its FLOPs include one fine-tuning, on the task that most variants have."""
    colours = variant_colours(results.variants)
    runs = [run for run in results.finetuning if run.finished and len(run.curve) and not run.keep_mask]
    tasks = group_by(runs, lambda run: run.task)
    task = max(tasks, key=lambda task: len({(run.size(), run.variant) for run in tasks[task]}), default="")
    tuned = group_by(tasks.get(task, []), lambda run: (run.size(), run.variant))
    cost, speed = [], []
    for variant in results.pretrained_variants():
        if not variant.flops:
            continue
        label, colour = run_label(results, variant.first), colours[variant.name]
        after = tuned.get((variant.size, variant.name), [])
        parts = [variant.flops, *([mean_flops(after)] if after else [])]
        note = power_label(sum(parts)) + (", unfinished" if variant.first.unfinished else "")
        against = ""
        if base := variant.base:
            base_after = tuned.get((base.size, base.name), [])
            if after and base_after:
                note += f", {sum(parts) / (base.flops + mean_flops(base_after)):.2f}x dense"
            else:  # a ratio with fine-tuning needs it for both variants
                note += f", pre-training {variant.flops / base.flops:.2f}x dense"
        cost.append(Bar(label, colour, parts, note))
        if variant.speed:
            if base and base.speed:
                against = f", {variant.speed / base.speed:.2f}x dense"
            speed.append(Bar(label, colour, [variant.speed], short_count(variant.speed) + against))
    several = any(len(bar.parts) > 1 for bar in cost)
    names = ("pre-training", f"one fine-tuning on {task_title(task)}") if several else ()
    caption = "Median over the steps after the first tenth, all ranks together, on the machine of the run."
    plots = [
        Plot(
            "flops_spent",
            "Cost",
            "Model FLOPs spent by each variant, mean over seeds.",
            partial(bar_figure, "FLOPs spent", "model FLOPs", cost, names),
        ),
        Plot("tokens_per_second", "Cost", caption, partial(bar_figure, "Training speed", "tokens/s", speed)),
    ]
    return [plot for plot, bars in zip(plots, (cost, speed), strict=True) if bars]
