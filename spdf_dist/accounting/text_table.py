"""Tables for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, width: int | None = None) -> str:
    """A text table with aligned columns and a rule under its header.

    Args:
        header: names of the columns.
        rows: cells of each row.
        left: number of left-aligned columns at the start. The others are right-aligned.
        width: maximum characters per line. The last column is wrapped to fit, but has at least 30 characters. None:
            nothing is wrapped.
    """
    grid = [list(map(str, header)), *(list(map(str, row)) for row in rows)]
    widths = [max(len(row[i]) for row in grid) for i in range(len(header))]
    if width is not None:
        widths[-1] = min(widths[-1], max(30, width - sum(widths[:-1]) - 2 * (len(widths) - 1)))

    def line(row: list[str]) -> str:
        cells = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    def lines(row: list[str]) -> str:
        parts = (textwrap.wrap(row[-1], widths[-1]) if width is not None else None) or [row[-1]]
        empty = [""] * (len(row) - 1)
        return "\n".join(line([*(empty if at else row[:-1]), part]) for at, part in enumerate(parts))

    return "\n".join([lines(grid[0]), "  ".join("-" * w for w in widths), *(lines(row) for row in grid[1:])])
