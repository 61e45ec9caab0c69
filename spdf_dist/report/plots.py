"""Which figures a study has, from its runs and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
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
from spdf_dist.report.runs import Run, short_count
from spdf_dist.report.scores import TASK_NAMES, estimate, metric_name
from spdf_dist.report.study import Study
from spdf_dist.report.style import variant_colours
from spdf_dist.report.tables import (
    by_variant,
    dense_baselines,
    finished,
    mean_flops,
    metrics_of,
    ordered,
    score_groups,
    task_title,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plot:
    """A figure with its place in the report."""

    name: str
    """File name, without the ending."""
    section: str
    caption: str
    draw: Callable[[], Figure]


def study_plots(study: Study) -> list[Plot]:
    """Every figure that the study has data for."""
    return [*pretraining_plots(study), *finetuning_plots(study), *score_plots(study), *cost_plots(study)]


def run_label(study: Study, run: Run) -> str:
    """The variant, with the model's size where the report has several."""
    sizes = {other.size() for other in study.pretraining}
    return f"{run.variant()}, {run.size()}" if len(sizes) > 1 else run.variant()


def sizes_of(study: Study) -> list[str]:
    """The models' sizes, largest first."""
    counts = {run.size(): total_parameters(run.model) for run in study.pretraining if run.model}
    return sorted(counts, key=lambda size: -counts[size])


def colours_of(study: Study) -> dict[str, str]:
    """The variant's colour for each label that ``run_label`` gives: sizes differ by line style."""
    colours = variant_colours(study.variants)
    return {run_label(study, run): colours[run.variant()] for run in (*study.pretraining, *study.finetuning)}


def lines(
    study: Study, runs: Sequence[Run], x: Callable[[Run], Sequence[float]], y: Callable[[Run], Sequence[float]]
) -> list[Series]:
    """One line a run: its colour says the variant, its style the size, the largest solid."""
    colours, sizes = colours_of(study), sizes_of(study)
    return [
        Series(
            run_label(study, run),
            colours[run_label(study, run)],
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


def pretraining_plots(study: Study) -> list[Plot]:
    """Loss over tokens and wall-clock, validation loss over tokens and FLOPs."""
    runs = [run for run in ordered(study, study.pretraining) if run.step]
    if not runs:
        return []
    longest = max(run.seconds[-1] for run in runs)
    scale, unit = time_unit(longest)
    section = "Pre-training"
    plots = [
        Plot(
            "loss_over_tokens",
            section,
            "Training loss; the faint line is each step, the strong one a moving average.",
            lambda: line_figure(
                "Training loss over tokens",
                "tokens",
                "loss, nats a token",
                lines(study, runs, lambda r: r.tokens, lambda r: r.loss),
                smoothed=True,
                x_format=count_label,
            ),
        ),
        Plot(
            "loss_over_time",
            section,
            "The same over the time spent in training steps; validation and saving are not counted.",
            lambda: line_figure(
                "Training loss over wall-clock",
                f"time in training steps, {unit}",
                "loss, nats a token",
                lines(study, runs, lambda r: [s / scale for s in r.seconds], lambda r: r.loss),
                smoothed=True,
            ),
        ),
    ]
    checked = [run for run in runs if len(run.validation) > 1]
    if checked:
        plots += [
            Plot(
                "validation_over_tokens",
                section,
                "Validation loss on held-out sequences.",
                lambda: line_figure(
                    "Validation loss over tokens",
                    "tokens",
                    "loss, nats a token",
                    lines(study, checked, lambda r: validation_x(r, r.tokens), validation_y),
                    points=True,
                    x_format=count_label,
                ),
            ),
            Plot(
                "validation_over_flops",
                section,
                "The same over model FLOPs: what each bit of quality cost. Further left is cheaper.",
                lambda: line_figure(
                    "Validation loss over FLOPs",
                    "model FLOPs spent",
                    "loss, nats a token",
                    lines(study, checked, lambda r: validation_x(r, r.flops), validation_y),
                    points=True,
                    x_format=power_label,
                ),
            ),
        ]
    return plots


def finetuning_plots(study: Study) -> list[Plot]:
    """Loss and validation loss of fine-tuning: figures for each task, and for the control that keeps the mask."""
    groups: dict[tuple[bool, str], list[Run]] = {}
    for run in ordered(study, study.finetuning):
        if run.step:
            groups.setdefault((run.keep_mask, run.task), []).append(run)
    several = len({task for _, task in groups}) > 1
    usual = list(TASK_NAMES)
    plots = []
    for keep_mask, task in sorted(groups, key=lambda g: (g[0], usual.index(g[1]) if g[1] in usual else len(usual))):
        tail = "".join(f"-{part}" for part in (task if several else "", "sparse" if keep_mask else "") if part)
        plots += tuning_plots(study, groups[keep_mask, task], tail)
    return plots


def tuning_plots(study: Study, runs: Sequence[Run], tail: str) -> list[Plot]:
    """The figures of fine-tuning on one task; ``tail`` ends their file names."""
    task = TASK_NAMES.get(runs[0].task, runs[0].task)
    section, what, control = "Dense fine-tuning", "fine-tuning", ""
    if runs[0].keep_mask:
        section, what, control = "Sparse fine-tuning", "sparse fine-tuning", " The control: the mask is kept."
    plots = [
        Plot(
            f"finetune_loss{tail}",
            section,
            f"{task}: training loss on target tokens (label smoothing included where it is set).{control}",
            lambda: line_figure(
                f"{task}: {what} loss over steps",
                "optimizer steps",
                "loss, nats a target token",
                lines(study, runs, lambda r: r.step, lambda r: r.loss),
                smoothed=True,
                x_format=count_label,
            ),
        )
    ]
    checked = [run for run in runs if run.validation]
    if checked:
        plots.append(
            Plot(
                f"finetune_validation{tail}",
                section,
                f"{task}: validation loss, unsmoothed.{control}",
                lambda: line_figure(
                    f"{task}: {what} validation loss over steps",
                    "optimizer steps",
                    "loss, nats a target token",
                    lines(study, checked, lambda r: [float(s) for s, _ in r.validation], validation_y),
                    points=True,
                    x_format=count_label,
                ),
            )
        )
    return plots


def score_plots(study: Study) -> list[Plot]:
    """A figure a task: every metric, the variants one under the other."""
    plots = []
    colours = variant_colours(study.variants)
    for (task, split, size), group in score_groups(study).items():
        synthetic = any(score.synthetic for scores in group.values() for score in scores)
        panels = []
        for metric in metrics_of(group):
            dots = []
            for name, scores in group.items():
                value = estimate([score.metrics.get(metric) for score in scores])
                if value:
                    digits = 2 if abs(value.mean) >= 10 else 3
                    colour = colours[scores[0].variant]
                    dots.append(Dot(name, colour, value.mean, value.deviation, f"{value.mean:.{digits}f}"))
            if dots:
                panels.append((metric_name(metric), dots))
        if not panels:
            continue
        title = f"{task_title(task, split, size)}{' (synthetic data)' if synthetic else ''}"
        plots.append(
            Plot(
                "-".join(part for part in ("scores", task, split, size) if part).replace(" ", "_"),
                "Scores",
                "Mean over seeds; bars are the sample deviation. The arrow shows the better direction.",
                lambda title=title, panels=panels: dot_figure(title, panels),  # type: ignore[misc]
            )
        )
    return plots


def cost_plots(study: Study) -> list[Plot]:
    """FLOPs and speed of each variant."""
    runs = [run for run in ordered(study, study.pretraining) if run.step]
    if not runs:
        return []
    colours = colours_of(study)
    groups = by_variant(runs)
    baselines = dense_baselines(groups)
    task = common_task(study)
    tuned = by_variant([run for run in tuned_dense(study) if run.task == task])
    cost, speed = [], []
    for (size, name), all_members in groups.items():
        members = finished(all_members)
        label = run_label(study, members[0])
        after = tuned.get((size, name), [])
        parts = [mean_flops(members), *([mean_flops(after)] if after else [])]
        note = power_label(sum(parts))
        base = finished(groups[size, baselines[size]]) if size in baselines else []
        if members[0].unfinished:
            note += ", unfinished"
        elif base and name != baselines[size] and not base[0].unfinished:
            base_after = tuned.get((size, baselines[size]), [])
            if after and base_after:
                note += f", {sum(parts) / (mean_flops(base) + mean_flops(base_after)):.2f}x dense"
            else:  # what one of the two lacks is in neither
                note += f", pre-training {parts[0] / mean_flops(base):.2f}x dense"
        cost.append(Bar(label, colours[label], parts, note))
        speeds = [run.median_speed for run in members if run.median_speed]
        if speeds:
            speed.append(Bar(label, colours[label], [mean(speeds)], short_count(mean(speeds))))
    tuning = f"one fine-tuning on {TASK_NAMES.get(task, task)}"
    names = ("pre-training", tuning) if any(len(bar.parts) > 1 for bar in cost) else ("pre-training",)
    plots = [
        Plot(
            "flops_spent",
            "Cost",
            "Model FLOPs spent by each variant, mean over seeds.",
            lambda: bar_figure("FLOPs spent", "model FLOPs", cost, names),
        )
    ]
    if speed:
        plots.append(
            Plot(
                "tokens_per_second",
                "Cost",
                "Median over the steps after the first tenth, all ranks together, on the machine of the run.",
                lambda: bar_figure("Training speed", "tokens/s", speed),
            )
        )
    return plots


def tuned_dense(study: Study) -> list[Run]:
    """The dense fine-tuning runs that came to their end: only those say what one costs."""
    return [run for run in ordered(study, study.finetuning) if run.whole and run.flops and not run.keep_mask]


def common_task(study: Study) -> str:
    """The task that most variants were fine-tuned on, dense; empty without any."""
    variants: dict[str, set[tuple[str, str]]] = {}
    for run in tuned_dense(study):
        variants.setdefault(run.task, set()).add((run.size(), run.variant()))
    return max(variants, key=lambda task: len(variants[task]), default="")
