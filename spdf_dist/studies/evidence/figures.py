"""Lines over a logarithmic x axis, which differ by marker as well as by colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes

from spdf_dist.report.figures import DASHES, MARKERS

Numbers = Sequence[float] | np.ndarray
SHAPES = ("o", "s", "^", "D", "v")
"""Markers of lines in one figure."""


def draw_line(axes: Axes, label: str, colour: str, x: Numbers, y: Numbers, dash: int = 0, marker: str = "") -> None:
    """Draw a line with its markers."""
    line = DASHES[dash % len(DASHES)] if len(x) > 1 else ""
    every = max(1, len(x) // 6)
    axes.plot(x, y, label=label, color=colour, linestyle=line, marker=marker, markevery=every, **MARKERS)


def draw_band(axes: Axes, colour: str, x: Numbers, samples: np.ndarray) -> None:
    """Draw the 95% range of samples [S, len(x)]."""
    axes.fill_between(x, *np.percentile(samples, [2.5, 97.5], axis=0), color=colour, alpha=0.18, linewidth=0)


def finish_axes(axes: Axes, location: str) -> None:
    """A logarithmic x axis and a legend."""
    axes.set_xscale("log")
    axes.legend(loc=location, fontsize=9, handlelength=2.2, labelspacing=0.3)


def plain_ticks(axes: Axes, values: Sequence[float], text: Callable[[float], str]) -> None:
    """Ticks at ``values`` of a logarithmic x axis, without minor ticks."""
    axes.set_xticks(list(values), [text(value) for value in values])
    axes.minorticks_off()
