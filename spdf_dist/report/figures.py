"""Functions that draw with matplotlib from plain numbers. They must be called inside ``style.drawing()``.

The figures are narrow, so that their text is readable on a page of 400 pixels width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spdf_dist.base.numbers import power_label, short_count
from spdf_dist.report.style import INK, MUTED, PAPER

WIDTH = 5.4
"""Width of a figure in inches."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS: dict[str, Any] = {"markersize": 5.5, "markeredgecolor": PAPER, "markeredgewidth": 0.7}
"""The style of the markers on lines."""


@dataclass(frozen=True)
class Bar:
    """One horizontal bar with parts from left to right."""

    label: str
    colour: str
    parts: Sequence[float]
    note: str
    """Text to the right of the bar."""


@dataclass(frozen=True)
class Dot:
    """One value with its error bar, for ``dot_figure``."""

    label: str
    colour: str
    value: float
    error: float | None
    """Half the length of the error bar."""
    note: str
    hollow: bool = False
    """Whether the marker is hollow, which denotes a printed value."""


def new_axes(title: str, x_label: str, y_label: str, height: float) -> tuple[Figure, Axes]:
    """A figure with one panel."""
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.add_subplot(title=title, xlabel=x_label, ylabel=y_label)


def new_panels(
    title: str, heights: Sequence[float], height: float, share: bool = False
) -> tuple[Figure, Sequence[Axes]]:
    """A figure with panels below each other, in the ratio of ``heights``, and a common title.

    ``share``: the panels have the same limits on both axes.
    """
    figure = Figure(figsize=(WIDTH, height))
    figure.suptitle(title, x=0.02, ha="left", fontweight="semibold", fontsize=11.5)
    ratios = {"height_ratios": heights}
    panels = figure.subplots(len(heights), 1, sharex=share, sharey=share, squeeze=False, gridspec_kw=ratios)
    return figure, list(panels.flat)


def add_legend(axes: Axes, location: str = "upper right") -> None:
    """A legend with each label once, in the style of the first line with this label."""
    handles = {handle.get_label(): handle for handle in reversed(axes.get_legend_handles_labels()[0])}
    if handles:
        axes.legend(handles=[*handles.values()][::-1], loc=location, labelcolor="linecolor", handlelength=1.6)


def bar_figure(title: str, x_label: str, bars: Sequence[Bar], part_names: Sequence[str] = ()) -> Figure:
    """Horizontal bars, each with its label above and its note to the right. Later parts of a bar are lighter."""
    if part_names:
        x_label += f" (solid: {part_names[0]}, light: {part_names[1]})"
    figure, axes = new_axes(title, x_label, "", 1.0 + 0.55 * len(bars))
    longest = max((sum(bar.parts) for bar in bars), default=1) or 1
    for row, bar in enumerate(bars):
        left = 0.0
        for k, part in enumerate(bar.parts):
            axes.barh(row, part, left=left, height=0.45, color=bar.colour, alpha=1.0 if k == 0 else 0.4)
            left += part
        beside(axes, bar.note, (left, row), (6, 0))
        beside(axes, bar.label, (0, row - 0.27), (2, 5), bar.colour)
    hide_rows(axes, len(bars), 0.55)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, longest * 1.5)
    number = power_label if longest >= 1e12 else short_count
    axes.xaxis.set_major_formatter(lambda value, _: number(value))
    return figure


def beside(axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], colour: str = INK) -> None:
    """Write ``text`` at ``offset`` points from ``at``."""
    axes.annotate(
        text, at, offset, textcoords="offset points", va="center", fontsize=9.5, color=colour,
        fontweight="normal" if colour == INK else "semibold",
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5},
    )  # fmt: skip


def hide_rows(axes: Axes, count: int, below: float = 0.5) -> None:
    """Show ``count`` rows from top to bottom, with room for a label above each, without labels on the y axis."""
    axes.set_yticks(range(count), [""] * count)
    axes.set_ylim(count - 1 + below, -0.8)
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=5)


def dot_figure(title: str, panels: Sequence[tuple[str, Sequence[Dot]]], limits: Sequence[float] = ()) -> Figure:
    """One panel per metric, stacked vertically. A panel has one row per variant, with its name above its value.

    ``limits`` are marked by vertical lines, the first one solid and the others dashed.
    """
    heights = [0.75 + 0.42 * len(dots) for _, dots in panels]
    figure, grid = new_panels(title, heights, sum(heights) + 0.35)
    for axes, (name, dots) in zip(grid, panels, strict=True):
        ends = [dot.value + sign * (dot.error or 0) for dot in dots for sign in (-1, 1)] + [*limits]
        room = 0.25 * (max(ends) - min(ends)) or 0.1 * abs(max(ends)) or 1.0
        low, high = min(ends) - room, max(ends) + room
        for row, dot in enumerate(dots):
            axes.errorbar(
                dot.value, row, xerr=dot.error or None, fmt="o", color=dot.colour, markersize=8,
                capsize=3, elinewidth=1.6, markerfacecolor=PAPER if dot.hollow else dot.colour,
            )  # fmt: skip
            beside(axes, f"{dot.label}  {dot.note}", (low, row), (0, 10), dot.colour)
        for k, limit in enumerate(limits):
            axes.axvline(limit, color=MUTED, linewidth=1.1, zorder=0, linestyle=DASHES[min(k, 1)])
        axes.set_xlim(low, high)
        hide_rows(axes, len(dots))
        axes.set_title(name, fontsize=10.5)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.15 / figure.get_figheight()), h_pad=1.2)
    return figure
