"""The figures, each a function from plain numbers to a matplotlib figure. Called inside ``style.drawing()``."""

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

MOST_POINTS = 1200
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))


@dataclass(frozen=True)
class Series:
    """One line."""

    label: str
    """Lines with one label share a colour and are labelled once."""
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    dash: int = 0
    """Index of its line style: 0 is solid."""
    whole: bool = True
    """False for a run that has not ended: its end places no label where another's can."""


@dataclass(frozen=True)
class Bar:
    """One horizontal bar, of parts from left to right."""

    label: str
    colour: str
    parts: Sequence[float]
    note: str
    """Written behind the bar."""


@dataclass(frozen=True)
class Dot:
    """One value with its deviation."""

    label: str
    colour: str
    value: float
    deviation: float | None
    note: str
    hollow: bool = False
    """For reference values of others."""


def count_label(value: float, _: object = None) -> str:
    """2500000 as 2.5M."""
    if value == 0:
        return "0"
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}"


def power_label(value: float, _: object = None) -> str:
    """Powers of ten in the form 2.5e15."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def time_unit(seconds: float) -> tuple[float, str]:
    """A divisor and a unit in which ``seconds`` reads well."""
    for name, scale in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * scale:
            return scale, name
    return 1.0, "seconds"


def smooth(values: Sequence[float], span: int) -> list[float]:
    """Moving average over up to ``span`` points, centred but at the end and narrow at the steep start."""
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
    """Fewer points, the last one kept."""
    stride = max(1, len(series.x) // MOST_POINTS)
    chosen = [*range(0, len(series.x) - 1, stride), len(series.x) - 1] if series.x else []
    x, y = [series.x[i] for i in chosen], [series.y[i] for i in chosen]
    return replace(series, x=x, y=y)


def spread(positions: list[float], gap: float) -> list[float]:
    """Move sorted positions apart until neighbours are ``gap`` apart, staying centred on where they were."""
    blocks = [[p, 1.0] for p in positions]  # centre, members
    merged = True
    while merged:
        merged = False
        for i in range(len(blocks) - 1):
            (low, n), (high, m) = blocks[i], blocks[i + 1]
            if low + gap * (n - 1) / 2 + gap > high - gap * (m - 1) / 2:
                blocks[i : i + 2] = [[(low * n + high * m) / (n + m), n + m]]
                merged = True
                break
    out = []
    for centre, members in blocks:
        out += [centre + gap * (k - (members - 1) / 2) for k in range(int(members))]
    return out


FEW_LABELS = 4
"""Up to so many lines, one that ends early is labelled where it ends."""


def label_ends(axes: Axes, series: Sequence[Series]) -> None:
    """Each label once, in its colour, at its line's end or, where that would crowd, in a column at the right."""
    ends: dict[str, list[Series]] = {}
    for line in series:
        if line.x:
            ends.setdefault(line.label, []).append(line)
    if not ends:
        return
    low, high = axes.get_ylim()
    height = axes.get_window_extent().height
    right = max(line.x[-1] for lines in ends.values() for line in lines)
    column = []
    for label, every in ends.items():
        lines = [line for line in every if line.whole] or every
        x = sum(line.x[-1] for line in lines) / len(lines)
        y = min(max(sum(line.y[-1] for line in lines) / len(lines), low), high)
        if x < 0.85 * right and len(ends) <= FEW_LABELS:
            write_label(axes, label, lines[0].colour, (x, y), (6, 7))
        else:
            column.append((y, label, lines[0].colour))
    column.sort()
    gap = 13.5 * axes.figure.dpi / 72 / height * (high - low)
    for y, (_, label, colour) in zip(spread([entry[0] for entry in column], gap), column, strict=True):
        write_label(axes, label, colour, (right, y), (7, 0))


def write_label(axes: Axes, text: str, colour: str, at: tuple[float, float], offset: tuple[float, float]) -> None:
    """A line's label ``offset`` points from ``at``."""
    axes.annotate(
        text, at, xytext=offset, textcoords="offset points", color=colour, va="center", fontweight="semibold",
        fontsize=10, annotation_clip=False,
    )  # fmt: skip


def visible_range(series: Sequence[Series]) -> tuple[float, float] | None:
    """Limits that show every line but for its first, steep 4%."""
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
    """Lines over a common x axis; ``smoothed`` draws the raw values faint beneath, ``points`` marks each value."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.7))
    axes = figure.add_subplot()
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
        )  # fmt: skip
        shown.append(line)
    limits = visible_range(shown)
    if limits:
        axes.set_ylim(*limits)
    axes.set_xlim(left=0)
    if shown:
        axes.set_xlim(right=max((line.x[-1] for line in shown if line.x), default=1) or 1)
    axes.grid(axis="x", visible=False)
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if x_format:
        axes.xaxis.set_major_formatter(x_format)
    label_ends(axes, shown)
    return figure


def bar_figure(title: str, x_label: str, bars: Sequence[Bar], part_names: Sequence[str] = ()) -> Figure:
    """Horizontal bars, each with its note; later parts of a bar are lighter."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 0.95 + 0.42 * len(bars) + (0.25 if len(part_names) > 1 else 0)))
    axes = figure.add_subplot()
    longest = max((sum(bar.parts) for bar in bars), default=1) or 1
    for row, bar in enumerate(bars):
        left = 0.0
        for k, part in enumerate(bar.parts):
            axes.barh(row, part, left=left, height=0.62, color=bar.colour, alpha=1.0 if k == 0 else 0.4)
            left += part
        axes.annotate(bar.note, (left, row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9.5)
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    for tick, bar in zip(axes.get_yticklabels(), bars, strict=True):
        tick.set_color(bar.colour)
        tick.set_fontweight("semibold")
    axes.set_ylim(len(bars) - 0.45, -0.55)
    axes.set_xlim(0, longest * 1.32)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(few_ticks(5))
    axes.xaxis.set_major_formatter(power_label if longest >= 1e12 else count_label)
    axes.set_title(title, pad=24 if len(part_names) > 1 else 10)
    axes.set_xlabel(x_label)
    if len(part_names) > 1:
        text = f"solid: {part_names[0]} · light: {part_names[1]}"
        axes.annotate(
            text, (0, 1), xycoords="axes fraction", xytext=(0, 6), textcoords="offset points", color=MUTED, fontsize=9
        )
    return figure


def few_ticks(count: int) -> MaxNLocator:
    """At most ``count`` intervals on an axis."""
    from matplotlib import ticker

    return ticker.MaxNLocator(count)


def dot_figure(title: str, panels: Sequence[tuple[str, Sequence[Dot]]]) -> Figure:
    """One panel a metric, at most three a row (two where rows differ); one row a variant, coloured and labelled."""
    from matplotlib.figure import Figure

    same = len({tuple(dot.label for dot in dots) for _, dots in panels}) == 1
    columns = min(3 if same else 2, len(panels)) or 1
    rows = math.ceil(len(panels) / columns) or 1
    entries = max((len(dots) for _, dots in panels), default=1)
    tall = (0.9 + 0.36 * entries) * rows + 0.35
    figure = Figure(figsize=(3.15 * columns + 1.3, tall) if columns > 2 else (4.6 * columns + 0.4, tall))
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(title, x=0.02, ha="left", fontweight="semibold", fontsize=11.5, color=INK)
    for k, axes in enumerate(grid.flat):
        if k >= len(panels):
            axes.set_visible(False)
            continue
        name, dots = panels[k]
        for row, dot in enumerate(dots):
            axes.errorbar(
                dot.value, row, xerr=dot.deviation or None, fmt="o", color=dot.colour, markersize=8, capsize=3,
                elinewidth=1.6, markerfacecolor=PAPER if dot.hollow else dot.colour,
            )  # fmt: skip
            axes.annotate(
                dot.note, (dot.value, row), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9
            )
        values = [d.value - (d.deviation or 0) for d in dots] + [d.value + (d.deviation or 0) for d in dots]
        room = 0.22 * (max(values) - min(values)) or 0.1 * abs(max(values)) or 1.0
        axes.set_xlim(min(values) - room, max(values) + room)
        labels = [dot.label for dot in dots]
        repeated = k % columns > 0 and labels == [dot.label for dot in panels[k - 1][1]]
        axes.set_yticks(range(len(dots)), [""] * len(dots) if repeated else labels)
        for tick, dot in zip(axes.get_yticklabels(), dots, strict=True):
            tick.set_color(dot.colour)
            tick.set_fontweight("semibold")
        axes.set_ylim(len(dots) - 0.5, -0.75)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(few_ticks(4))
        axes.set_title(name, fontsize=10.5)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.2 / tall), w_pad=1.5, h_pad=1.2)
    return figure


def speedup_figure(title: str, sparsity: Sequence[float], lines: Sequence[Series]) -> Figure:
    """Measured speed-up over sparsity against the theoretical 1 / (1 - s) (paper, Figure 1)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0))
    axes = figure.add_subplot()
    most = max([*sparsity, 0.5])
    ideal_x = [most * k / 100 for k in range(101)]
    ideal = Series("theoretical", MUTED, [100 * s for s in ideal_x], [1 / (1 - s) for s in ideal_x])
    axes.plot(ideal.x, ideal.y, color=MUTED, linestyle=(0, (4, 3)), linewidth=1.5)
    for line in lines:
        axes.plot(line.x, line.y, color=line.colour, marker="o", markersize=5, markeredgecolor=PAPER)
    axes.axhline(1, color=MUTED, linewidth=0.8)
    axes.set_xlim(0, 100 * most)
    axes.set_ylim(bottom=0)
    axes.grid(axis="x", visible=False)
    axes.set_title(title)
    axes.set_xlabel("sparsity, %")
    axes.set_ylabel("speed-up over the best dense, x")
    label_ends(axes, [ideal, *lines])
    return figure
