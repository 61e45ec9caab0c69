"""The figures of the evidence study. Functions draw with matplotlib from plain numbers, inside ``style.drawing()``.

Lines and points differ by marker as well as by colour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from spdf_dist.base.numbers import power_label
from spdf_dist.report.figures import DASHES, Numbers, Series, draw_line, new_axes, new_panels
from spdf_dist.report.style import GRID, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v")


def draw_lines(axes: Axes, lines: Sequence[Series], location: str) -> None:
    """Draw lines over a logarithmic x axis, with a legend."""
    for line in lines:
        draw_line(axes, line, markevery=max(1, len(line.x) // 6))
    axes.set_xscale("log")
    axes.legend(loc=location, fontsize=9, handlelength=2.2, labelspacing=0.3)


def plain_ticks(axes: Axes, values: Numbers, text: Callable[[float], str]) -> None:
    """Ticks at ``values`` of a logarithmic x axis, without minor ticks."""
    axes.set_xticks(list(values), [text(value) for value in values])
    axes.minorticks_off()


def rates_figure(title: str, y_label: str, panels: Sequence[tuple[str, Sequence[Series]]]) -> Figure:
    """One panel per parameterization over the same learning rates. A ring marks the lowest loss of each line."""
    figure, grid = new_panels(title, [1.0] * len(panels), 0.4 + 2.7 * len(panels), share=True)
    for axes, (name, lines) in zip(grid, panels, strict=True):
        draw_lines(axes, lines, "best")
        for line in lines:
            x, y = min(zip(line.x, line.y, strict=True), key=lambda point: point[1])
            axes.plot(
                x, y, "o", markersize=13, markerfacecolor="none", markeredgecolor=line.colour, markeredgewidth=1.6
            )
        axes.set_title(name, fontsize=10.5)
        axes.set_ylabel(y_label)
        axes.margins(y=0.12)
    rates = sorted({x for _, lines in panels for line in lines for x in line.x})
    ticks = [1e-3 * 2**k for k in range(-6, 8) if rates[0] <= 1e-3 * 2**k <= rates[-1]]
    plain_ticks(grid[-1], ticks, lambda value: f"{value:.3g}")
    grid[-1].set_xlabel("peak learning rate")
    figure.tight_layout(rect=(0, 0, 1, 1.01))
    return figure


def sizes_figure(title: str, y_label: str, dense: Series, others: Sequence[Series]) -> Figure:
    """Loss over size. A dotted line leads from each sparse point to the dense curve at equal loss."""
    figure, axes = new_axes(title, "parameters, pruned ones included", y_label, 3.5)
    draw_lines(axes, [dense, *others], "upper right")
    axes.set_yscale("log")
    log_x, log_y = np.log(dense.x), np.log(dense.y)
    for line in others:
        for x, y in zip(line.x, line.y, strict=True):
            if min(dense.y) <= y <= max(dense.y):
                on_curve = float(np.exp(np.interp(-np.log(y), -log_y, log_x)))
                axes.plot([on_curve, x], [y, y], color=line.colour, linestyle=DASHES[2], linewidth=1.2)
    plain_ticks(axes, dense.x, lambda value: f"{value / 1e6:.2f}M")
    low, high = axes.get_ylim()
    ticks = [tick / 10 for tick in range(int(low * 10) + 1, int(high * 10) + 1)]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.yaxis.minorticks_off()
    return figure


def law_figure(title: str, shares: Sequence[Series], gains: Sequence[Series], measured: tuple[float, float]) -> Figure:
    """Above: the share of its size that a sparse model is worth. Below: the loss against dense at equal FLOPs.

    ``measured`` is the range of the FLOPs of the study's runs.
    """
    figure, (upper, lower) = new_panels(title, [1.0, 1.0], 7.0)
    draw_lines(upper, shares, "upper left")
    upper.set_title("what a sparse model is worth", fontsize=10.5)
    upper.set_xlabel("density of the linear layers")
    upper.set_ylabel("share of its full size")
    plain_ticks(upper, [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1], lambda value: f"{value:.4g}")
    upper.set_ylim(0, 1.05)
    draw_lines(lower, gains, "upper left")
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
