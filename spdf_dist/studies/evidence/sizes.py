"""H3: the loss over the model size, and the size of the dense model of equal loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from spdf_dist.report.estimates import paired
from spdf_dist.report.figures import DASHES, new_axes
from spdf_dist.report.page import Plot, Table
from spdf_dist.report.plots import LOSS
from spdf_dist.studies.evidence.figures import draw_line, finish_axes, plain_ticks
from spdf_dist.studies.evidence.losses import COLOURS
from spdf_dist.studies.evidence.rows import STUDY, TEXTS, Evidence
from spdf_dist.studies.evidence.rules import LEVELS, Finding

SMALLER, LARGER = 0.0, np.inf
"""Size of the dense model of equal loss where it lies below or above the dense models."""


@dataclass(frozen=True)
class Size:
    """The losses of one model size at 10 tokens per parameter, by seed."""

    width: int
    parameters: int
    linear: int
    """Weights of the linear layers."""
    dense: pd.Series
    sparse: pd.Series


def sizes(evidence: Evidence, variant: str = "s75", tuned: bool = False) -> list[Size]:
    """The sizes with finished dense runs, smallest first. ``tuned``: after fine-tuning on E2E."""
    found = []
    for pretrain, cell, finetune in STUDY["sizes"]:
        job, place = (finetune, "") if tuned else (pretrain, cell)
        rows = evidence.at(job, "dense", place).dropna(subset=["width", "parameters", "linear"])
        if len(rows):
            width, parameters, linear = map(int, rows[["width", "parameters", "linear"]].iloc[0])
            dense, sparse = (evidence.losses(job, name, place) for name in ("dense", variant))
            found.append(Size(width, parameters, linear, dense, sparse))
    return found


def equal_size(curve: pd.Series, loss: float) -> float:
    """The size of the dense model of equal loss, by log-log interpolation; SMALLER or LARGER outside of the curve.

    ``curve`` has the loss by size. It must fall with the size, otherwise NaN is returned.
    """
    curve = curve.sort_index()
    if not curve.is_monotonic_decreasing:
        return np.nan
    size = np.interp(-np.log(loss), -np.log(curve), np.log(curve.index), left=-np.inf, right=np.inf)
    return float(np.exp(size))


def size_multipliers(found: list[Size], linear: bool = False) -> dict[int, pd.Series]:
    """By width and seed: the size of the dense model of equal loss over the size, for seeds with a dense curve.

    The size is the number of parameters; with ``linear``, that of the weights of the linear layers.
    """
    count = {size.width: size.linear if linear else size.parameters for size in found}
    curves = pd.DataFrame({count[size.width]: size.dense for size in found}).T
    result = {}
    for size in found:
        seeds = [seed for seed in size.sparse.index if curves.get(seed, pd.Series(dtype=float)).count() > 1]
        values = [equal_size(curves[seed].dropna(), size.sparse[seed]) / count[size.width] for seed in seeds]
        result[size.width] = pd.Series(values, seeds, dtype=float)
    return result


def inside(multipliers: pd.Series) -> pd.Series:
    """The multipliers that lie on the curve."""
    return multipliers[(multipliers > SMALLER) & (multipliers < LARGER)]


def outside_text(multipliers: pd.Series) -> str:
    """A remark with the number of seeds whose multiplier lies outside of the curve; empty without any."""
    places = {SMALLER: "smaller than the smallest dense model", LARGER: "larger than the largest dense model"}
    counts = multipliers[multipliers.isin(places)].value_counts(sort=False)
    return "; ".join(f"{count} of {len(multipliers)} seeds {places[place]}" for place, count in counts.items())


def large_models_lose_less(evidence: Evidence) -> list[Finding]:
    """H3: the multiplier m at the largest width minus that at the middle width, for 75%.

    The second row counts only the weights of the linear layers. The embeddings' share of the parameters falls with the
    width; if a sparse model is worth the same share of its linear layers at every width, m of all parameters falls too.
    """
    findings = []
    found = sizes(evidence)
    for linear in (False, True):
        multipliers = {width: values for width, values in size_multipliers(found, linear).items() if len(values)}
        widths = sorted(multipliers)[-2:]
        remark, value = "", None
        if len(found) == len(STUDY["sizes"]) and len(widths) == 2:
            middle, large = (multipliers[width] for width in widths)
            remark = "; ".join(f"width {w}: {text}" for w in widths if (text := outside_text(multipliers[w])))
            value = None if remark else paired(large, middle)
        label = "75%, linear layers only" if linear else "75%, all parameters"
        findings.append(Finding(label, value, 0.0, above=True, remark=remark, control=linear))
    return findings


def size_table(evidence: Evidence) -> Table:
    """Losses at each size for H3."""
    rows = []
    for what, found in (("pre-training", sizes(evidence)), ("E2E", sizes(evidence, tuned=True))):
        every, linear = size_multipliers(found), size_multipliers(found, linear=True)
        for size in found:
            row = {"what": what, "size": size, "difference": paired(size.sparse, size.dense)}
            row |= {"m": inside(every[size.width]), "linear": inside(linear[size.width])}
            rows.append(row | {"outside": outside_text(every[size.width])})
    return TEXTS.table("evidence_sizes", rows)


def sizes_figure(title: str, evidence: Evidence) -> Figure:
    """Loss over size. A dotted line leads from each sparse point to the dense curve at equal loss."""
    figure, axes = new_axes(title, "parameters, pruned ones included", LOSS, 3.5)
    dense = pd.Series({size.parameters: size.dense.mean() for size in sizes(evidence) if len(size.dense)})
    draw_line(axes, "dense", COLOURS["dense"], dense.index, dense, marker="o")
    for variant, level in LEVELS.items():
        sparse = {size.parameters: size.sparse.mean() for size in sizes(evidence, variant) if len(size.sparse)}
        if sparse:
            marker = "s" if level == "50%" else "^"
            draw_line(axes, level, COLOURS[level], [*sparse], [*sparse.values()], dash=1, marker=marker)
        for x, y in sparse.items():
            if dense.min() <= y <= dense.max():
                axes.plot([equal_size(dense, y), x], [y, y], color=COLOURS[level], linestyle=DASHES[2], linewidth=1.2)
    finish_axes(axes, "upper right")
    plain_ticks(axes, dense.index, lambda value: f"{value / 1e6:.2f}M")
    return figure


def sizes_plot(evidence: Evidence) -> list[Plot]:
    """The dense curve of loss over size, with the sparse models beside it; none with fewer than two sizes."""
    found = [size for size in sizes(evidence) if len(size.dense)]
    return [TEXTS.plot("evidence_sizes", sizes_figure, evidence)] if len(found) > 1 else []
