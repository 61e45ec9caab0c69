"""Selects the figures of the evidence study from its rows."""

from __future__ import annotations

from functools import partial

import numpy as np

from spdf_dist.base.numbers import signed
from spdf_dist.report.figures import Dot, Series, dot_figure
from spdf_dist.report.page import Plot
from spdf_dist.report.plots import LOSS
from spdf_dist.report.style import variant_colours
from spdf_dist.studies.evidence.figures import MARKERS, law_figure, rates_figure, sizes_figure
from spdf_dist.studies.evidence.law import DENSITIES, SHARES, Law, best_at_budget, shape_of
from spdf_dist.studies.evidence.rows import Evidence
from spdf_dist.studies.evidence.rules import (
    LEVELS,
    MARGIN,
    METHODS,
    STATIC,
    Paired,
    against_static,
    little_is_lost,
    sizes,
)
from spdf_dist.studies.evidence.tables import COLOURS, budgets_of, finding_name, rate_lines

TITLE = "Evidence"


def sizes_plot(evidence: Evidence) -> list[Plot]:
    """The dense curve of loss over size, with the sparse models beside it."""
    found = [size for size in sizes(evidence) if len(size.dense)]
    if len(found) < 2:
        return []
    lines = []
    for variant, level in LEVELS.items():
        sparse = [size for size in sizes(evidence, variant) if len(size.sparse)]
        if sparse:
            x, y = [float(size.parameters) for size in sparse], [size.sparse.mean() for size in sparse]
            lines.append(Series(level, COLOURS[level], x, y, dash=1, marker="s" if level == "50%" else "^"))
    x, y = [float(size.parameters) for size in found], [size.dense.mean() for size in found]
    title = "H3: loss over size at 10 tokens per parameter"
    draw = partial(sizes_figure, title, LOSS, Series("dense", COLOURS["dense"], x, y, marker="o"), lines)
    caption = "Pre-training validation loss over size. Dotted: from a sparse model to the dense one of equal loss."
    return [Plot("evidence_sizes", TITLE, caption, draw)]


def rates_plot(evidence: Evidence) -> list[Plot]:
    """The figure of learning rates."""
    panels = rate_lines(evidence)
    if not panels:
        return []
    title = "The best learning rate, dense and 75%"
    caption = "Validation loss over the peak learning rate, 5 tokens per parameter. Rings: the best rate of the grid."
    return [Plot("evidence_rates", TITLE, caption, partial(rates_figure, title, LOSS, panels))]


def interval_dot(label: str, colour: str, value: Paired) -> Dot:
    """A difference with its 95% interval."""
    return Dot(label, colour, value.mean, value.half_width, signed(value.mean))


def equal_plot(evidence: Evidence) -> list[Plot]:
    """The differences to static 75% at equal FLOPs."""
    dots = []
    for name, (job, _, _) in METHODS.items():
        value = against_static(evidence, name)
        if value is not None and METHODS[name] != STATIC:
            dots.append(interval_dot(name, COLOURS["dense" if job == "dense-equal" else "75%"], value))
    if not dots:
        return []
    title = "Methods at equal FLOPs"
    caption = f"{title}, against static 75%. Bars: 95% interval. Dashed: the margin of blocks, {MARGIN} nats."
    panel = ("validation loss minus static 75%, nats (left: better)", dots)
    return [Plot("evidence_equal_flops", TITLE, caption, partial(dot_figure, title, [panel], (0.0, MARGIN)))]


def lost_plot(evidence: Evidence) -> list[Plot]:
    """The differences to dense after fine-tuning."""
    found = [(row, row.value) for row in little_is_lost(evidence) if row.value is not None]
    dots = [interval_dot(finding_name(row), COLOURS[row.labels[1]], value) for row, value in found]
    if not dots:
        return []
    title = "H1: loss after dense fine-tuning, against dense"
    caption = f"{title}. Bars: 95% interval. Dashed: the margin, {MARGIN} nats."
    panel = ("validation loss minus dense, nats per target token", dots)
    return [Plot("evidence_h1", TITLE, caption, partial(dot_figure, title, [panel], (0.0, MARGIN)))]


def law_plot(evidence: Evidence, law: Law) -> list[Plot]:
    """What a sparse model is worth, and which density a FLOP budget asks for, with published laws."""
    shape = shape_of(evidence)
    if shape is None:
        return []
    density = np.geomspace(1 / 16, 1, 33)
    gammas = law.samples[:, -1]
    low, high = np.percentile(density ** gammas[:, None], [2.5, 97.5], axis=0)
    ours = "this study"
    shares = [Series(ours, COLOURS["75%"], density, density ** law.best[-1], band=(low, high))]
    grey, other = variant_colours(["paper", "small"]).values()
    for dash, (colour, (who, share)) in enumerate(zip((other, grey), SHARES.items(), strict=True), 1):
        shares.append(Series(who, colour, density, share(density), dash=dash))
    budgets = np.geomspace(budgets_of(law)[0] / 2, budgets_of(law)[1] * 2, 25)
    both = np.concatenate([law.best[None], law.samples])
    dense, _ = best_at_budget(both, shape, budgets, 1.0, 1.0)
    gains = []
    for k, (kept, label) in enumerate(zip(DENSITIES[1:4], ("50%", "75%", "87.5%"), strict=True)):
        found = best_at_budget(both, shape, budgets, kept, kept ** both[:, -1])[0] - dense
        limits = np.percentile(found[1:], [2.5, 97.5], axis=0)
        gains.append(Series(label, COLOURS[label], budgets, found[0], marker=MARKERS[k], band=(limits[0], limits[1])))
    for dash, (who, share) in enumerate(SHARES.items(), 1):
        found = best_at_budget(law.best[None], shape, budgets, 0.25, share(0.25))[0] - dense[:1]
        gains.append(Series(f"75%, share of {who}", COLOURS["75%"], budgets, found[0], dash=dash))
    caption = (
        "Above: the share of its full size that a sparse model is worth, fitted and published. Below: the predicted "
        "loss against dense at equal FLOPs, each at its best width; bands: 95%."
    )
    draw = partial(law_figure, "Scaling law with sparsity", shares, gains, budgets_of(law))
    return [Plot("evidence_law", TITLE, caption, draw)]
