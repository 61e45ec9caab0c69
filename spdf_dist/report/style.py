"""Colours and fonts of all figures. A variant has the same colour in every figure.

Figures have a transparent background and a few text colours. The page maps these colours to its light or dark theme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from spdf_dist.base.extras import require_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1d2733"
MUTED = "#6a7683"
GRID = "#dfe4ea"
PAPER = "#ffffff"
THEMED = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--page)"}

FIXED = {
    "dense": "#2f7fc4",
    "untrained": "#8d969f",
    "paper": "#8d969f",
    "small": "#7f7bd1",
    "stopped": "#4fa7b8",
}
LEVEL_COLOURS = {"50": "#1b9c78", "75": "#e0672b", "90": "#d04a6b"}
CYCLE = ("#b565b8", "#c59a16", "#8a9a2e", "#4fa7b8", "#7f7bd1", *LEVEL_COLOURS.values())
"""Colours of all other variants. Those of the levels come last."""
SIZE = re.compile(r"^\d[\d.]*[kmb]-", re.IGNORECASE)
PLAIN_LEVEL = re.compile(r"s?(\d{2})%?( sparse)?")
"""Matches a variant that names only a level: s75, 75%, 75% sparse; not b75 or 75% block:16."""


def variant_colours(variants: Sequence[str]) -> dict[str, str]:
    """A colour for each variant: dense is always blue, untrained grey, 50% green and 75% orange.

    The colour of a plain level does not depend on the order of ``variants``. A variant has the same colour at several
    sizes (1m-s75, 4m-s75), which differ by line style.
    """
    kinds = dict.fromkeys(SIZE.sub("", name) for name in variants)
    colours: dict[str, str] = {}
    for kind in kinds:
        what = kind.rpartition("-")[2]
        level = PLAIN_LEVEL.fullmatch(what)
        wanted = FIXED.get(what) or (LEVEL_COLOURS.get(level[1]) if level else None)
        if wanted and wanted not in colours.values():
            colours[kind] = wanted
    for kind in kinds:
        if kind not in colours:
            free = [c for c in CYCLE if c not in colours.values()] or list(CYCLE)
            colours[kind] = free[0]
    return {name: colours[SIZE.sub("", name)] for name in variants}


SETTINGS: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "semibold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 10,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "text.color": INK,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a $ in a folder name is literal
    "savefig.dpi": 160,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with matplotlib without a display, with ``SETTINGS``."""
    import logging

    require_extra("report", "drawing figures")
    import matplotlib

    matplotlib.use("Agg")
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with matplotlib.rc_context(SETTINGS):
        yield


def to_png(figure: Figure) -> bytes:
    """The figure as PNG on a white background."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=PAPER, bbox_inches="tight", pad_inches=0.15)
    return buffer.getvalue()


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element for the page, with colours of the page's theme."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    for colour, variable in THEMED.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)  # ids of groups are not unique across figures
    svg = re.sub(r"font: ([^;\"]*?)'[^;\"]*", r"font: \1var(--sans)", svg)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', svg, count=1)
