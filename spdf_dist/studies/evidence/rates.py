"""The loss over the peak learning rate, dense and 75%, by parameterization."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from spdf_dist.report.figures import new_panels
from spdf_dist.report.page import NONE, Plot, Table
from spdf_dist.report.plots import LOSS
from spdf_dist.report.style import variant_colours
from spdf_dist.studies.evidence.figures import SHAPES, draw_line, finish_axes, plain_ticks
from spdf_dist.studies.evidence.law import base_row
from spdf_dist.studies.evidence.losses import COLOURS
from spdf_dist.studies.evidence.rows import STUDY, TEXTS, Evidence
from spdf_dist.studies.evidence.rules import SENTENCES

STANDARD, ARTEFACT = "standard parameterization", "dense, embeddings at 4 x the rate"
Panels = dict[str, dict[str, pd.Series]]


def rate_lines(evidence: Evidence) -> Panels:
    """Losses by learning rate: a line per model, in a panel per parameterization."""
    done, base = evidence.done.dropna(subset=["lr", "loss"]), base_row(evidence)
    panels: Panels = {}
    for name, points in STUDY["rates"].items():
        for label, (job, variant) in points.items():
            found = done[(done.job == job) & (done.variant == variant)]
            if job == "sweep" and base is not None:
                found = found[found.init_std == base.init_std]
            if len(found):
                panels.setdefault(name, {})[label] = found.set_index("lr").loss.sort_index()
    return panels


def optimum(line: pd.Series) -> tuple[float, bool]:
    """The best rate, from a parabola in log rate through the best point and its neighbours; whether it is inside."""
    best = int(np.argmin(line))
    if best in (0, len(line) - 1):
        return line.index[best], False
    near = line.iloc[best - 1 : best + 2]
    x = np.log(near.index) - np.log(near.index[1])
    second, first, _ = np.polyfit(x, near, 2)
    return float(near.index[1] * np.exp(-first / (2 * second))), True


def rate_table(evidence: Evidence) -> Table:
    """The best rate of each line of the figure of rates, and the rule of weight decay."""
    rows = []
    for name, lines in rate_lines(evidence).items():
        for label, line in lines.items():
            best, is_inside = optimum(line)
            place = f"{best:.2g}" if is_inside else "at the end of the grid"
            rows.append({"name": name, "label": label, "rate": line.idxmin(), "place": place, "loss": line.min()})
    for row in evidence.at("decay-rule").to_dict("records"):
        rows.append(row | {"name": "SuPar", "label": "75%, rate times decay kept", "rate": row["lr"], "place": NONE})
    return TEXTS.table("evidence_rates", rows)


def rate_text(evidence: Evidence) -> str:
    """Sentences on how far the optimum moves from dense to 75%, on the artefact and on weight decay."""
    panels, moves = rate_lines(evidence), []
    for name, lines in panels.items():
        if {"dense", "75%"} <= lines.keys():
            (dense, in_dense), (sparse, in_sparse) = optimum(lines["dense"]), optimum(lines["75%"])
            gap = lines["75%"].min() - lines["dense"].min()
            moves.append((name, sparse / dense, not (in_dense and in_sparse), gap))
    best = {label: line.min() for label, line in panels.get(STANDARD, {}).items()}
    artefact = [best[label] for label in ("dense", ARTEFACT, "75%")] if len(best) == 3 else []
    kept, other = evidence.at("decay-rule"), evidence.done[evidence.done.job == "optimum-supar"]
    decay = list(other.merge(kept, on="lr", suffixes=("", "_kept")).itertuples())
    return SENTENCES.rates(moves, artefact, decay)


def rates_figure(title: str, panels: Panels) -> Figure:
    """One panel per parameterization over the same learning rates. A ring marks the lowest loss of each line."""
    figure, grid = new_panels(title, [1.0] * len(panels), 0.4 + 2.7 * len(panels), share=True)
    for axes, (name, lines) in zip(grid, panels.items(), strict=True):
        for k, (label, line) in enumerate(lines.items()):
            colour = COLOURS.get(label, variant_colours(["paper"])["paper"])
            draw_line(axes, label, colour, line.index, line, dash=k, marker=SHAPES[k])
            axes.scatter(line.idxmin(), line.min(), 169, facecolors="none", edgecolors=colour, linewidths=1.6)
        finish_axes(axes, "best")
        axes.set_title(name, fontsize=10.5)
        axes.set_ylabel(LOSS)
        axes.margins(y=0.12)
    rates = sorted(rate for lines in panels.values() for line in lines.values() for rate in line.index)
    ticks = [1e-3 * 2**k for k in range(-6, 8) if rates[0] <= 1e-3 * 2**k <= rates[-1]]
    plain_ticks(grid[-1], ticks, lambda value: f"{value:.3g}")
    grid[-1].set_xlabel("peak learning rate")
    figure.tight_layout(rect=(0, 0, 1, 1.01))
    return figure


def rates_plot(evidence: Evidence) -> list[Plot]:
    """The figure of learning rates; none without runs."""
    panels = rate_lines(evidence)
    return [TEXTS.plot("evidence_rates", rates_figure, panels)] if panels else []
