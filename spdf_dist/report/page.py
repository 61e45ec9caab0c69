"""The parts of a report, and its page: one HTML file without scripts, in the reader's light or dark theme."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from spdf_dist.base.numbers import MINUS, duration, power_label, short_count, signed
from spdf_dist.config.yaml_reader import read_yaml_file

Rows = Sequence[Mapping[str, Any]]
FILTERS = {"short": short_count, "power": power_label, "signed": signed, "duration": duration}
NOT_RUN, NOT_COMPUTED, NONE = EMPTY = ("not run", "not computed", "–")
"""Texts of cells without a value."""


@dataclass
class Table:
    """A table of text cells. After a line break in a cell, the text is smaller. A table without rows is not shown."""

    name: str
    """File name of the CSV, without suffix."""
    title: str
    rows: Rows
    """Rows by column. All have the same columns."""
    note: str = ""
    synthetic: bool = False
    labels: int = 1
    """Number of leading columns that are labels."""

    def csv(self) -> str:
        """The table as CSV. A semicolon joins the lines of a cell, and minus signs are ASCII."""
        frame = pd.DataFrame(self.rows, dtype=str).replace({"\n": "; ", MINUS: "-"}, regex=True)
        return (frame.assign(data="synthetic") if self.synthetic else frame).to_csv(index=False)


@dataclass(frozen=True)
class Plot:
    """A figure with its caption."""

    name: str
    """File name without suffix."""
    caption: str
    draw: Callable[[], Figure]


def templates(folder: Path, **filters: Callable[..., str]) -> Environment:
    """The jinja2 templates of a folder. A template of HTML escapes its values; an unknown name is an error."""
    made = Environment(
        loader=FileSystemLoader(folder), autoescape=lambda name: ".html" in (name or ""), undefined=StrictUndefined
    )
    made.filters.update(FILTERS, **filters, anchor=lambda title: re.sub(r"[\W_]", "-", title.lower()))
    return made


class Texts:
    """The words of tables and figures in a YAML file: ``tables`` and ``figures``, each by name.

    A table has ``title``, ``note``, the number of ``labels``, and a jinja2 template for the cells of each column. A
    figure has ``title`` and ``caption``. Fields in braces are filled.
    """

    def __init__(self, path: Path, **filters: Callable[..., str]) -> None:
        self.content: dict[str, Any] = read_yaml_file(path)
        self.templates = templates(path.parent, **filters)

    def table(self, key: str, rows: Rows, *, name: str = "", synthetic: bool = False, **fields: Any) -> Table:
        """A table with the values of ``rows``, or with their cells if the file has no columns for it.

        ``name`` is its file name, if it is not ``key``.
        """
        text = self.content["tables"][key]
        if columns := {column: self.templates.from_string(cell) for column, cell in text.get("columns", {}).items()}:
            rows = [{column: cell.render(row) for column, cell in columns.items()} for row in rows]
        title, note = (text.get(part, "").format(**fields) for part in ("title", "note"))
        return Table(name or key, title, rows, note, synthetic, text.get("labels", 1))

    def plot(self, key: str, draw: Callable[..., Figure], *data: Any, name: str = "", **fields: Any) -> Plot:
        """A figure that ``draw`` makes of its title and ``data``. ``name`` is its file name, if it is not ``key``."""
        text = self.content["figures"][key]
        title, caption = (text[part].format(**fields) for part in ("title", "caption"))
        return Plot(name or key, caption, partial(draw, title, *data))


TEXTS = Texts(Path(__file__).with_name("texts.yaml"))
"""The words of the report's own tables and figures."""


@dataclass
class Section:
    """A heading with text, figures and tables."""

    title: str
    intro: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    folded: bool = False
    """Whether the section is collapsed at first."""

    def __post_init__(self) -> None:
        self.tables = [table for table in self.tables if table.rows]
