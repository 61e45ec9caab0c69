"""Colours and fonts of all figures. A variant has the same colour in every figure.

Figures have a transparent background and a few text colours. The page maps these colours to its light or dark theme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from spdf_dist.base.extras import require_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1d2733", "#6a7683", "#dfe4ea", "#ffffff"
THEMED = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--page)"}
MUTED_PARTS = ("axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
COLOURS = {"axes.titlecolor": INK, "text.color": INK, "grid.color": GRID} | dict.fromkeys(MUTED_PARTS, MUTED)

FIXED = {"dense": "#2f7fc4", "untrained": "#8d969f", "paper": "#8d969f", "small": "#7f7bd1", "stopped": "#4fa7b8"}
LEVELS = {"50": "#1b9c78", "75": "#e0672b", "90": "#d04a6b"}
CYCLE = ("#b565b8", "#c59a16", "#8a9a2e", "#4fa7b8", "#7f7bd1", *LEVELS.values())
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
        wanted = LEVELS.get(level[1]) if level else FIXED.get(what)
        if wanted and wanted not in colours.values():
            colours[kind] = wanted
    for kind in kinds:
        if kind not in colours:
            colours[kind] = next((one for one in CYCLE if one not in colours.values()), CYCLE[0])
    return {name: colours[SIZE.sub("", name)] for name in variants}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with matplotlib without a display, in the style of the report."""
    import logging

    require_extra("report", "drawing figures")
    import matplotlib.style

    matplotlib.use("Agg")
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with matplotlib.style.context([Path(__file__).parent / "report.mplstyle", COLOURS]):
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
