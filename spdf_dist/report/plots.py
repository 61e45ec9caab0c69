"""Selects the figures of a report from its runs and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from spdf_dist.accounting.parameters import total_parameters
from spdf_dist.report.figures import (
    Bar,
    Dot,
    Series,
    bar_figure,
    count_label,
    dot_figure,
    line_figure,
    power_label,
    time_unit,
)
from spdf_dist.report.results import Results
from spdf_dist.report.runs import Run, short_count
from spdf_dist.report.scores import estimate, metric_name, metrics_of, task_title
from spdf_dist.report.style import variant_colours
from spdf_dist.report.tables import (
    by_variant,
    dense_baseline,
    file_name,
    finished,
    group_title,
    mean_flops,
    mean_speed,
    ordered,
    score_groups,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSS = "loss, nats per token"
TARGET_LOSS = "loss, nats per target token"


@dataclass(frozen=True)
class Plot:
    """A figure with its section and caption."""

    name: str
    """File name without suffix."""
    section: str
    caption: str
    draw: Callable[[], Figure]


def result_plots(results: Results) -> list[Plot]:
    """Every figure for which the results have data."""
    return [*pretraining_plots(results), *finetuning_plots(results), *score_plots(results), *cost_plots(results)]


def run_label(results: Results, run: Run) -> str:
    """The variant, with the model size where the report has several sizes."""
    sizes = {other.size() for other in results.pretraining}
    return f"{run.variant}, {run.size()}" if len(sizes) > 1 else run.variant


def lines(
    results: Results, runs: Sequence[Run], x: Callable[[Run], Sequence[float]], y: Callable[[Run], Sequence[float]]
) -> list[Series]:
    """One line per run. The variant determines the colour, and the model size the line style; the largest is solid."""
    counts = {run.size(): total_parameters(run.model) for run in results.pretraining if run.model}
    sizes = sorted(counts, key=lambda size: -counts[size])
    colours = variant_colours(results.variants)
    return [
        Series(
            run_label(results, run),
            colours[run.variant],
            x(run),
            y(run),
            sizes.index(run.size()) if run.size() in sizes else 0,
            whole=run.whole,
        )
        for run in runs
        if len(y(run)) > 0
    ]


def validation_x(run: Run, column: list[float]) -> list[float]:
    """A cumulative column at the steps of the validations."""
    return [run.at_step(step, column) or 0.0 for step, _ in run.validation]


def validation_y(run: Run) -> list[float]:
    """Validation losses."""
    return [loss for _, loss in run.validation]


def pretraining_plots(results: Results) -> list[Plot]:
    """Figures of training loss over tokens and time, and of validation loss over tokens and FLOPs."""
    runs = [run for run in ordered(results, results.pretraining) if run.step]
    if not runs:
        return []
    scale, unit = time_unit(max(run.seconds[-1] for run in runs))
    checked = [run for run in runs if len(run.validation) > 1]
    tokens = lines(results, runs, lambda r: r.tokens, lambda r: r.loss)
    seconds = lines(results, runs, lambda r: [s / scale for s in r.seconds], lambda r: r.loss)
    over_tokens = lines(results, checked, lambda r: validation_x(r, r.tokens), validation_y)
    over_flops = lines(results, checked, lambda r: validation_x(r, r.flops), validation_y)
    smoothed = partial(line_figure, smoothed=True)
    points = partial(line_figure, points=True)
    plots = [
        Plot(
            "loss_over_tokens",
            "Pre-training",
            "Training loss: the faint line is each step, the strong one a moving average.",
            lambda: smoothed("Training loss over tokens", "tokens", LOSS, tokens, x_format=count_label),
        ),
        Plot(
            "loss_over_time",
            "Pre-training",
            "The same over the time spent in training steps, without validation and saving.",
            lambda: smoothed("Training loss over wall-clock", f"time in training steps, {unit}", LOSS, seconds),
        ),
        Plot(
            "validation_over_tokens",
            "Pre-training",
            "Validation loss on held-out sequences.",
            lambda: points("Validation loss over tokens", "tokens", LOSS, over_tokens, x_format=count_label),
        ),
        Plot(
            "validation_over_flops",
            "Pre-training",
            "The same over model FLOPs. Further left is cheaper.",
            lambda: points("Validation loss over FLOPs", "model FLOPs spent", LOSS, over_flops, x_format=power_label),
        ),
    ]
    return plots if checked else plots[:2]


def finetuning_plots(results: Results) -> list[Plot]:
    """Figures of fine-tuning losses, per task, and separately for the control that keeps the mask."""
    groups: dict[tuple[bool, str], list[Run]] = {}
    for run in ordered(results, results.finetuning):
        if run.step:
            groups.setdefault((run.keep_mask, run.task), []).append(run)
    several = len({task for _, task in groups}) > 1
    plots = []
    for keep_mask, task in sorted(groups):
        tail = "".join(f"-{part}" for part in (task if several else "", "sparse" if keep_mask else "") if part)
        plots += tuning_plots(results, groups[keep_mask, task], tail)
    return plots


def tuning_plots(results: Results, runs: Sequence[Run], tail: str) -> list[Plot]:
    """The figures of fine-tuning on one task. ``tail`` is the end of their file names."""
    task, steps = task_title(runs[0].task), "optimizer steps"
    section, what, control = "Dense fine-tuning", "fine-tuning", ""
    if runs[0].keep_mask:
        section, what, control = "Sparse fine-tuning", "sparse fine-tuning", " The control: the mask is kept."
    loss = lines(results, runs, lambda r: r.step, lambda r: r.loss)
    checked = lines(results, runs, lambda r: [float(s) for s, _ in r.validation], validation_y)
    figure = partial(line_figure, x_format=count_label)
    plots = [
        Plot(
            f"finetune_loss{tail}",
            section,
            f"{task}: training loss on target tokens (label smoothing included where it is set).{control}",
            lambda: figure(f"{task}: {what} loss over steps", steps, TARGET_LOSS, loss, smoothed=True),
        ),
        Plot(
            f"finetune_validation{tail}",
            section,
            f"{task}: validation loss, unsmoothed.{control}",
            lambda: figure(f"{task}: {what} validation loss over steps", steps, TARGET_LOSS, checked, points=True),
        ),
    ]
    return plots if checked else plots[:1]


def score_plots(results: Results) -> list[Plot]:
    """A figure per task, split and size, with a panel per metric and a row per variant."""
    plots = []
    colours = variant_colours(results.variants)
    for key, group in score_groups(results).items():
        scores = [score for members in group.values() for score in members]
        panels = []
        for metric in metrics_of(scores):
            dots = []
            for name, members in group.items():
                value = estimate(score.metrics.get(metric) for score in members)
                if value:
                    note = f"{value.mean:.{2 if abs(value.mean) >= 10 else 3}f}"
                    dots.append(Dot(name, colours[members[0].run.variant], value.mean, value.deviation, note))
            if dots:
                panels.append((metric_name(metric), dots))
        if panels:
            title = group_title(*key) + (" (synthetic data)" if any(score.synthetic for score in scores) else "")
            caption = "Mean over seeds; bars are the sample deviation. The arrow shows the better direction."
            plots.append(Plot(file_name(*key), "Scores", caption, partial(dot_figure, title, panels)))
    return plots


def cost_plots(results: Results) -> list[Plot]:
    """Figures of FLOPs and speed of each variant."""
    runs = [run for run in ordered(results, results.pretraining) if run.step]
    if not runs:
        return []
    colours = variant_colours(results.variants)
    groups = by_variant(runs)
    task = common_task(results)
    tuned = by_variant([run for run in tuned_dense(results) if run.task == task])
    cost, speed = [], []
    for (size, name), members in groups.items():
        whole, base = finished(members), dense_baseline(groups, size, name)
        label, colour = run_label(results, whole[0]), colours[name]
        after = tuned.get((size, name), [])
        parts = [mean_flops(whole), *([mean_flops(after)] if after else [])]
        note = power_label(sum(parts)) + (", unfinished" if whole[0].unfinished else "")
        if base:
            base_after = tuned.get((size, base[0].variant), [])
            if after and base_after:
                note += f", {sum(parts) / (mean_flops(base) + mean_flops(base_after)):.2f}x dense"
            else:  # a ratio with fine-tuning needs it for both variants
                note += f", pre-training {parts[0] / mean_flops(base):.2f}x dense"
        cost.append(Bar(label, colour, parts, note))
        tokens = mean_speed(whole)
        if tokens:
            against = mean_speed(base)
            times = f", {tokens / against:.2f}x dense" if against else ""
            speed.append(Bar(label, colour, [tokens], short_count(tokens) + times))
    several = any(len(bar.parts) > 1 for bar in cost)
    names = ("pre-training", f"one fine-tuning on {task_title(task)}") if several else ("pre-training",)
    plots = [
        Plot(
            "flops_spent",
            "Cost",
            "Model FLOPs spent by each variant, mean over seeds.",
            lambda: bar_figure("FLOPs spent", "model FLOPs", cost, names),
        ),
        Plot(
            "tokens_per_second",
            "Cost",
            "Median over the steps after the first tenth, all ranks together, on the machine of the run.",
            lambda: bar_figure("Training speed", "tokens/s", speed),
        ),
    ]
    return plots if speed else plots[:1]


def tuned_dense(results: Results) -> list[Run]:
    """The finished dense fine-tuning runs. Unfinished ones do not show the cost of fine-tuning."""
    return [run for run in ordered(results, results.finetuning) if run.whole and run.flops and not run.keep_mask]


def common_task(results: Results) -> str:
    """The task of dense fine-tuning with the most variants; empty without any."""
    variants: dict[str, set[tuple[str, str]]] = {}
    for run in tuned_dense(results):
        variants.setdefault(run.task, set()).add((run.size(), run.variant))
    return max(variants, key=lambda task: len(variants[task]), default="")
