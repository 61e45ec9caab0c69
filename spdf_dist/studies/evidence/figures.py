"""Lines over a logarithmic x axis, which differ by marker as well as by colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from spdf_dist.report.figures import DASHES, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHAPES = ("o", "s", "^", "D", "v")
"""Markers of lines in one figure."""


def draw_line(
    axes: Axes,
    label: str,
    colour: str,
    x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    *,
    dash: int = 0,
    marker: str = "",
    band: np.ndarray | None = None,
) -> None:
    """Draw a line with its markers, and a band between its lower and upper limits [2, len(x)]."""
    if band is not None:
        axes.fill_between(x, *band, color=colour, alpha=0.18, linewidth=0)
    line = DASHES[dash % len(DASHES)] if len(x) > 1 else ""
    every = max(1, len(x) // 6)
    axes.plot(x, y, label=label, color=colour, linestyle=line, marker=marker, markevery=every, **MARKERS)


def finish(axes: Axes, location: str) -> None:
    """A logarithmic x axis and a legend."""
    axes.set_xscale("log")
    axes.legend(loc=location, fontsize=9, handlelength=2.2, labelspacing=0.3)


def plain_ticks(axes: Axes, values: Sequence[float], text: Callable[[float], str]) -> None:
    """Ticks at ``values`` of a logarithmic x axis, without minor ticks."""
    axes.set_xticks(list(values), [text(value) for value in values])
    axes.minorticks_off()
