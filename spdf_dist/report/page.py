"""One self-contained HTML page without scripts, with the light or dark theme of the reader's system, and its parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from spdf_dist.base.numbers import MINUS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_RUN, NOT_COMPUTED, NONE = EMPTY = ("not run", "not computed", "–")
"""Texts of cells without a value."""


@dataclass
class Table:
    """A table of text cells. After a line break in a cell, the text is smaller."""

    name: str
    """File name of the CSV, without suffix."""
    title: str
    header: Sequence[str]
    rows: list[list[str]]
    note: str = ""
    synthetic: bool = False
    labels: int = 1
    """Number of leading columns that are labels."""
    marks: set[tuple[int, int]] = field(default_factory=set)
    """Cells (row, column) to highlight: numbers that differ from the printed ones."""

    @classmethod
    def of(cls, name: str, title: str, rows: Sequence[Mapping[str, str]], note: str = "", **more: Any) -> Table:
        """A table of rows by column; ``more`` are further fields."""
        return cls(name, title, list(rows[0]) if rows else [], [list(row.values()) for row in rows], note, **more)

    def csv(self) -> str:
        """The table as CSV. A semicolon joins the lines of a cell, and minus signs are ASCII."""
        frame = pd.DataFrame(self.rows, columns=list(self.header), dtype=str)
        frame = frame.replace({"\n": "; ", MINUS: "-"}, regex=True)
        return (frame.assign(data="synthetic") if self.synthetic else frame).to_csv(index=False)


@dataclass(frozen=True)
class Plot:
    """A figure with its section and caption."""

    name: str
    """File name without suffix."""
    section: str
    caption: str
    draw: Callable[[], Figure]


@dataclass
class Section:
    """A heading with text, figures and tables."""

    title: str
    intro: Sequence[str] = ()
    plots: list[Plot] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: bool = False
    """Whether the section is collapsed at first."""


def render_page(
    *, sections: Sequence[Section], figures: Mapping[str, str], colours: Mapping[str, str], **texts: Any
) -> str:
    """The HTML text of the page.

    Args:
        sections: sections without content are left out.
        figures: SVG of each plot, by name.
        colours: colour of each variant.
        texts: ``title``, ``subtitle``, ``warning``, ``footer``, and ``cards``, the headline numbers as (number, label).
    """
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.filters["anchor"] = lambda title: re.sub(r"[\W_]", "-", title.lower())
    shown = [section for section in sections if section.plots or section.tables or section.intro]
    template = environment.get_template("page.html.j2")
    return template.render(sections=shown, figures=figures, colours=colours, EMPTY=EMPTY, **texts)
