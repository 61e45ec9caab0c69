"""The results of the scaling law: its parameters, its points, and the density that a FLOP budget asks for."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from spdf_dist.base.numbers import power_label, signed
from spdf_dist.report.figures import new_panels
from spdf_dist.report.page import Section, Table
from spdf_dist.report.style import GRID, MUTED, variant_colours
from spdf_dist.studies.evidence.figures import SHAPES, draw_band, draw_line, finish_axes, plain_ticks
from spdf_dist.studies.evidence.law import (
    NAMES,
    SHARES,
    WIDTHS,
    Array,
    Law,
    Losses,
    Shape,
    best_at_budget,
    fit_law,
    law_points,
    losses_at,
    percentiles,
    shape_of,
    with_predictions,
)
from spdf_dist.studies.evidence.losses import COLOURS
from spdf_dist.studies.evidence.rows import STUDY, TEXTS, Evidence
from spdf_dist.studies.evidence.rules import SENTENCES


def law_section(evidence: Evidence) -> Section:
    """The scaling law in sentences, a figure and tables."""
    law, shape = fit_law(law_points(evidence)), shape_of(evidence)
    if law is None or shape is None:
        return Section("Scaling law", ["Too few points have run for a fit."])
    points = with_predictions(law, evidence)
    budgets = np.geomspace(law.points.flops.min(), law.points.flops.max(), 4)
    found = losses_at(law, shape, budgets)
    return Section(
        "Scaling law",
        [law_text(law, points, budgets, found)],
        [TEXTS.plot("evidence_law", law_figure, law, shape)],
        [parameter_table(law), budget_table(budgets, found), point_table(points)],
    )


def parameter_table(law: Law) -> Table:
    """The fitted parameters."""
    rows = [
        {"name": name, "meaning": meaning, "value": law.value(name), "interval": law.interval(name)}
        | {"identified": law.identified(name)}
        for name, meaning in STUDY["law"]["parameters"].items()
    ]
    for density in (0.5, 0.25):
        others = ", ".join(f"{who} {share(density):.2f}" for who, share in SHARES.items())
        meaning = f"share of its size that {1 - density:.0%} is worth ({others})"
        value, *interval = law.share(density)
        row = {"name": f"{density}^gamma", "meaning": meaning, "value": value, "interval": interval}
        rows.append(row | {"identified": law.identified("gamma")})
    return TEXTS.table("evidence_law", rows, points=len(law.points), residuals=law.deviation)


def point_table(points: pd.DataFrame) -> Table:
    """The points of the fit and of the test."""
    return TEXTS.table("evidence_law_points", points.to_dict("records"))


def budget_table(budgets: Array, found: Losses) -> Table:
    """The loss against dense at equal FLOPs, each at its best width."""
    rows = []
    for k, flops in enumerate(budgets):
        row = {"FLOPs": power_label(float(f"{flops:.1e}"))}
        for name, (losses, widths) in found.items():
            low, high = (signed(end) for end in percentiles(losses[1:, k]))
            loss = f"{losses[0, k]:.3f}" if name == "dense" else f"{signed(losses[0, k])}\n95% [{low}, {high}]"
            row[name] = f"{loss}\nwidth {widths[0, k]}"
        rows.append(row)
    return TEXTS.table("evidence_budgets", rows, smallest=WIDTHS[0], largest=WIDTHS[-1])


def law_text(law: Law, points: pd.DataFrame, budgets: Array, found: Losses) -> str:
    """Sentences with the best density of each budget, what the points identify, and the test of the law."""
    choices = []
    for k, flops in enumerate(budgets):
        gains = {name: 0.0 if name == "dense" else round(losses[0, k], 3) for name, (losses, _) in found.items()}
        best = min(gains, key=lambda name: gains[name])
        choices.append((power_label(float(f"{flops:.1e}")), best, gains[best]))
    known = [name for name in NAMES if law.identified(name)]
    return SENTENCES.law(choices, known, NAMES, list(points[points.part == "test"].itertuples()))


def law_figure(title: str, law: Law, shape: Shape) -> Figure:
    """Above: the share of its size that a sparse model is worth. Below: the loss against dense at equal FLOPs."""
    figure, (upper, lower) = new_panels(title, [1.0, 1.0], 7.0)
    density = np.geomspace(1 / 16, 1, 33)
    draw_band(upper, COLOURS["75%"], density, density ** law.samples[:, -1:])
    draw_line(upper, "this study", COLOURS["75%"], density, density ** law.best[-1])
    grey, other = variant_colours(["paper", "small"]).values()
    for dash, (colour, (who, share)) in enumerate(zip((other, grey), SHARES.items(), strict=True), 1):
        draw_line(upper, who, colour, density, share(density), dash=dash)
    finish_axes(upper, "upper left")
    upper.set_title("what a sparse model is worth", fontsize=10.5)
    upper.set_xlabel("density of the linear layers")
    upper.set_ylabel("share of its full size")
    plain_ticks(upper, [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1], lambda value: f"{value:.4g}")
    upper.set_ylim(0, 1.05)

    measured = law.points.flops.min(), law.points.flops.max()
    budgets = np.geomspace(measured[0] / 2, measured[1] * 2, 25)
    found = losses_at(law, shape, budgets)
    for marker, name in zip(SHAPES, ("50%", "75%", "87.5%"), strict=False):
        losses, _ = found[name]
        draw_band(lower, COLOURS[name], budgets, losses[1:])
        draw_line(lower, name, COLOURS[name], budgets, losses[0], marker=marker)
    for dash, (who, share) in enumerate(SHARES.items(), 1):
        losses, _ = best_at_budget(law.best[None], shape, budgets, 0.25, share(0.25))
        gains = losses[0] - found["dense"][0][0]
        draw_line(lower, f"75%, share of {who}", COLOURS["75%"], budgets, gains, dash=dash)
    finish_axes(lower, "upper left")
    lower.legend(loc="upper center", bbox_to_anchor=(0.45, -0.22), ncols=2, fontsize=9, labelspacing=0.3)
    lower.xaxis.set_major_formatter(lambda value, _: power_label(value))
    lower.xaxis.set_minor_formatter("")
    lower.axhline(0, color=MUTED, linewidth=1)
    lower.axvspan(*measured, color=GRID, alpha=0.5, zorder=0, linewidth=0)
    lower.set_title("which density at a FLOP budget (grey: measured)", fontsize=10.5)
    lower.set_xlabel("training FLOPs")
    lower.set_ylabel("loss minus dense, nats")
    figure.tight_layout(rect=(0, 0, 1, 1.01), h_pad=1.5)
    return figure
