"""Renders one self-contained HTML page without scripts, with the light or dark theme of the reader's system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spdf_dist.report.plots import Plot
from spdf_dist.report.tables import Table

EMPTY = ("not run", "not computed", "–")
"""Texts of cells without a value."""


@dataclass
class Section:
    """A heading with text, figures and tables."""

    title: str
    intro: Sequence[str] = ()
    plots: list[Plot] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: bool = False
    """Whether the section is collapsed at first."""


def anchor(title: str) -> str:
    """The HTML id of a heading."""
    return "".join(c if c.isalnum() else "-" for c in title.lower())


def render_page(
    title: str,
    subtitle: str,
    warning: str,
    cards: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    figures: Mapping[str, str],
    colours: Mapping[str, str],
    footer: str,
) -> str:
    """The HTML text of the page.

    Args:
        cards: headline numbers, as (number, label).
        sections: sections without content are left out.
        figures: SVG of each plot, by name.
        colours: colour of each variant.
    """
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.filters["anchor"] = anchor
    return environment.get_template("page.html.j2").render(
        title=title,
        subtitle=subtitle,
        warning=warning,
        cards=cards,
        sections=[section for section in sections if section.plots or section.tables or section.intro],
        figures=figures,
        colours=colours,
        footer=footer,
        EMPTY=EMPTY,
    )
