"""Functions that draw figures with matplotlib from plain numbers. They must be called inside ``style.drawing()``.

The figures are narrow, so that their text is readable on a page of 400 pixels width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from spdf_dist.report.style import INK, MUTED, PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

WIDTH = 5.4
"""Width of a figure in inches."""
MAX_POINTS = 1200
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))


@dataclass(frozen=True)
class Series:
    """One line of a figure."""

    label: str
    """Lines with the same label share a colour and one legend entry."""
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    dash: int = 0
    """Index of the line style; 0: solid."""
    whole: bool = True
    """Whether the run is finished. The line of an unfinished run is thinner."""


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
    """One value with its deviation, for ``dot_figure``."""

    label: str
    colour: str
    value: float
    deviation: float | None
    note: str
    hollow: bool = False
    """Whether the marker is hollow, which denotes a printed value."""


def count_label(value: float, _: object = None) -> str:
    """A count as short text: 2500000 as 2.5M."""
    if value == 0:
        return "0"
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}"


def power_label(value: float, _: object = None) -> str:
    """A number with a power of ten, such as 2.5e15."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def time_unit(seconds: float) -> tuple[float, str]:
    """(divisor, unit) with which ``seconds`` has a readable size."""
    for name, scale in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * scale:
            return scale, name
    return 1.0, "seconds"


def smooth(values: Sequence[float], span: int) -> list[float]:
    """Moving average over up to ``span`` points: centred, narrower at the start, one-sided at the end."""
    sums, counts = [0.0], [0]
    for value in values:
        finite = math.isfinite(value)
        sums.append(sums[-1] + (value if finite else 0.0))
        counts.append(counts[-1] + finite)
    out = []
    for k in range(len(values)):
        reach = min(span // 2, k)
        low, high = k - reach, min(k + reach + 1, len(values))
        count = counts[high] - counts[low]
        out.append((sums[high] - sums[low]) / count if count else math.nan)
    return out


def thin(series: Series) -> Series:
    """The line with fewer than twice ``MAX_POINTS`` points, including the last one."""
    stride = max(1, len(series.x) // MAX_POINTS)
    chosen = [*range(0, len(series.x) - 1, stride), len(series.x) - 1] if series.x else []
    x, y = [series.x[i] for i in chosen], [series.y[i] for i in chosen]
    return replace(series, x=x, y=y)


def visible_range(series: Sequence[Series]) -> tuple[float, float] | None:
    """Limits of the y axis that show every line except the steep first 4% of its points; None without values."""
    lows, highs = [], []
    for line in series:
        finite = [y for y in line.y if math.isfinite(y)]
        if not finite:
            continue
        lows.append(min(finite))
        highs.append(max(finite[len(finite) // 25 :]))
    if not lows:
        return None
    margin = 0.06 * (max(highs) - min(lows)) or 0.1
    return min(lows) - margin, max(highs) + margin


def legend(axes: Axes, series: Sequence[Series], location: str = "upper right") -> None:
    """Add a legend with each label once, in the style of the first line with this label."""
    from matplotlib.lines import Line2D

    first = {line.label: line for line in reversed(series)}
    handles = [
        Line2D([], [], color=line.colour, linestyle=DASHES[line.dash % len(DASHES)], label=label)
        for label, line in reversed(first.items())
    ]
    if handles:
        axes.legend(handles=handles, loc=location, fontsize=9, labelcolor="linecolor", handlelength=1.6)


def new_axes(title: str, x_label: str, y_label: str, height: float) -> tuple[Figure, Axes]:
    """A figure with one panel."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def line_figure(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    *,
    smoothed: bool = False,
    points: bool = False,
    x_format: Callable[[float, object], str] | None = None,
) -> Figure:
    """Lines over a common x axis.

    ``smoothed`` draws moving averages over faint raw values. ``points`` marks each value.
    """
    figure, axes = new_axes(title, x_label, y_label, 3.5)
    shown = []
    for line in series:
        alpha = 0.75 if sum(other.label == line.label for other in series) > 1 else 1.0
        if smoothed and len(line.x) > 30:
            raw = thin(line)
            axes.plot(raw.x, raw.y, color=line.colour, alpha=0.22, linewidth=0.8)
            line = thin(replace(line, y=smooth(line.y, max(5, len(line.x) // 40))))
        else:
            line = thin(line)
        marker = "o" if points and len(line.x) <= 40 else ""
        axes.plot(
            line.x, line.y, color=line.colour, alpha=alpha, marker=marker, markersize=5, markeredgecolor=PAPER,
            markeredgewidth=0.8, clip_on=not marker, zorder=3, linestyle=DASHES[line.dash % len(DASHES)],
            linewidth=2.0 if line.whole else 1.2,
        )  # fmt: skip
        shown.append(line)
    limits = visible_range(shown)
    if limits:
        axes.set_ylim(*limits)
    axes.set_xlim(0, max((line.x[-1] for line in shown if line.x), default=1) or 1)
    axes.xaxis.set_major_locator(few_ticks(5))
    axes.grid(axis="x", visible=False)
    if x_format:
        axes.xaxis.set_major_formatter(x_format)
    legend(axes, shown)
    return figure


def bar_figure(title: str, x_label: str, bars: Sequence[Bar], part_names: Sequence[str] = ()) -> Figure:
    """Horizontal bars, each with its label above and its note to the right. Later parts of a bar are lighter."""
    several = len(part_names) > 1
    figure, axes = new_axes(title, x_label, "", 1.0 + 0.55 * len(bars) + 0.25 * several)
    longest = max((sum(bar.parts) for bar in bars), default=1) or 1
    for row, bar in enumerate(bars):
        left = 0.0
        for k, part in enumerate(bar.parts):
            axes.barh(row, part, left=left, height=0.45, color=bar.colour, alpha=1.0 if k == 0 else 0.4)
            left += part
        beside(axes, bar.note, (left, row), (6, 0), "left")
        beside(axes, bar.label, (0, row - 0.27), (2, 5), "left", bar.colour)
    axes.set_yticks([])
    axes.set_ylim(len(bars) - 0.45, -0.75)
    axes.set_xlim(0, longest * 1.5)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(few_ticks(4))
    axes.xaxis.set_major_formatter(power_label if longest >= 1e12 else count_label)
    if several:
        axes.set_title(title, pad=24)
        text = f"solid: {part_names[0]} · light: {part_names[1]}"
        axes.annotate(
            text, (0, 1), xycoords="axes fraction", xytext=(0, 6), textcoords="offset points", color=MUTED, fontsize=9
        )
    return figure


def beside(
    axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], side: str, colour: str = INK
) -> None:
    """Write ``text`` at ``offset`` points from ``at``."""
    axes.annotate(
        text, at, xytext=offset, textcoords="offset points", va="center", ha=side, fontsize=9.5, color=colour,
        fontweight="normal" if colour == INK else "semibold",
    )  # fmt: skip


def few_ticks(count: int) -> MaxNLocator:
    """A locator with at most ``count`` intervals on an axis."""
    from matplotlib import ticker

    return ticker.MaxNLocator(count)


def dot_figure(title: str, panels: Sequence[tuple[str, Sequence[Dot]]]) -> Figure:
    """One panel per metric, stacked vertically. A panel has one row per variant, with its name above its value."""
    from matplotlib.figure import Figure

    rows = [max(1, len(dots)) for _, dots in panels] or [1]
    tall = sum(0.75 + 0.42 * count for count in rows) + 0.35
    figure = Figure(figsize=(WIDTH, tall))
    grid = figure.subplots(len(rows), 1, squeeze=False, gridspec_kw={"height_ratios": [0.75 + 0.42 * n for n in rows]})
    figure.suptitle(title, x=0.02, ha="left", fontweight="semibold", fontsize=11.5, color=INK)
    for axes, (name, dots) in zip(grid.flat, panels, strict=False):
        values = [d.value - (d.deviation or 0) for d in dots] + [d.value + (d.deviation or 0) for d in dots]
        room = 0.25 * (max(values) - min(values)) or 0.1 * abs(max(values)) or 1.0
        low, high = min(values) - room, max(values) + room
        for row, dot in enumerate(dots):
            axes.errorbar(
                dot.value, row, xerr=dot.deviation or None, fmt="o", color=dot.colour, markersize=8, capsize=3,
                elinewidth=1.6, markerfacecolor=PAPER if dot.hollow else dot.colour,
            )  # fmt: skip
            beside(axes, f"{dot.label}  {dot.note}", (low, row), (0, 10), "left", dot.colour)
        axes.set_xlim(low, high)
        axes.set_yticks(range(len(dots)), [""] * len(dots))
        axes.set_ylim(len(dots) - 0.5, -0.85)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(few_ticks(4))
        axes.set_title(name, fontsize=10.5)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.2 / tall), h_pad=1.2)
    return figure


def speedup_figure(title: str, lines: Sequence[Series]) -> Figure:
    """Measured and theoretical speed-up, 1 / (1 - s), against sparsity s in % (paper, appendix C, Figure 1)."""
    figure, axes = new_axes(title, "sparsity, %", "speed-up over the best dense product", 3.8)
    highest = max([*(x for line in lines for x in line.x), 50.0])
    xs = [highest * k / 100 for k in range(101)]
    ideal = Series("theoretical, 1 / (1 - s)", MUTED, xs, [1 / (1 - x / 100) for x in xs], dash=1)
    for line in (ideal, *lines):
        marker = "" if line is ideal else "o"
        axes.plot(line.x, line.y, color=line.colour, linestyle=DASHES[line.dash], marker=marker, markersize=5)
    axes.axhline(1, color=MUTED, linewidth=0.8)
    axes.set_xlim(0, highest)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.grid(axis="x", visible=False)
    legend(axes, [ideal, *lines], "upper left")
    return figure
