"""One HTML page that holds everything: no network, no scripts, light or dark as the reader's system is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spdf_dist.report.plots import Plot
from spdf_dist.report.tables import Table

EMPTY = ("not run", "not computed", "–")
"""Cells that hold no value."""


@dataclass
class Section:
    """A heading with text, figures and tables."""

    title: str
    intro: Sequence[str] = ()
    plots: list[Plot] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: bool = False
    """Whether the reader has to open it."""


def anchor(title: str) -> str:
    """A heading's id."""
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
    """The whole page.

    Args:
        cards: the headline, as (figure, what it is).
        sections: those without content are left out.
        figures: the SVG of each plot, by name.
        colours: of the variants.
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
