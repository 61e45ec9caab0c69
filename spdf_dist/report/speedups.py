"""Kernel measurements of ``spdf bench gemm --json`` as a figure like Figure 1 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spdf_dist.base.atomic_files import write_bytes, write_text
from spdf_dist.base.extras import require_extra
from spdf_dist.config.errors import UserError

if TYPE_CHECKING:
    from spdf_dist.report.figures import Series

COLOURS = {"forward": "#2f7fc4", "dx": "#1b9c78", "dw": "#e0672b"}
COLUMNS = (
    *("out", "in", "tokens", "threads", "dtype", "op", "sparsity"),
    *("theoretical", "speedup", "speedup_lower", "median_ms", "best_dense", "backend"),
)


def is_gemm_bench(content: dict[str, Any]) -> bool:
    """Whether a JSON object is the output of ``spdf bench gemm --json``."""
    results = content.get("results")
    needed = {"op", "speedup", "sparsity", "out", "in"}
    return (
        bool(results) and isinstance(results, list) and all(isinstance(r, dict) and needed <= set(r) for r in results)
    )


def speedup_series(results: Sequence[dict[str, Any]]) -> list[Series]:
    """Speed-up over the best dense back end against sparsity (%), one line per operation."""
    from spdf_dist.report.figures import Series

    lines = []
    for op, colour in COLOURS.items():
        rows = [row for row in results if row["op"] == op and row["speedup"] is not None]
        points = sorted((100 * row["sparsity"], row["speedup"]) for row in rows)
        if points:
            x, y = zip(*points, strict=True)
            lines.append(Series(op, colour, x, y, marker="o"))
    return lines


def largest_square(bench: dict[str, Any]) -> list[dict[str, Any]]:
    """The measurements of the largest square shape with the most threads."""
    square = [row for row in bench.get("results", []) if row["out"] == row["in"]]
    rank = max(((row["out"], row.get("threads", 1)) for row in square), default=(0, 0))
    return [row for row in square if (row["out"], row.get("threads", 1)) == rank]


def bench_note(bench: dict[str, Any]) -> str:
    """A sentence with shape, machine and threads of the measurement."""
    size = max((row["out"] for row in largest_square(bench)), default=0)
    machine = bench.get("machine") or {}
    name = machine.get("cpu") if isinstance(machine, dict) else machine
    return f"{size} x {size} product, {name}, {bench.get('threads', '?')} threads."


def write_speedup_figure(path: Path, results: Sequence[dict[str, Any]], title: str) -> Path:
    """Draw measured and theoretical speed-up against sparsity, and write a CSV of the points beside the figure.

    Returns the path of the CSV. Raises UserError for another suffix than .png or .svg.
    """
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"--plot {path}: the suffix says the format; it must be .png or .svg")
    require_extra("report", "--plot")
    import pandas as pd

    from spdf_dist.report.figures import speedup_figure
    from spdf_dist.report.style import drawing, to_png, to_svg

    with drawing():
        figure = speedup_figure(title, speedup_series(results))
        data = to_png(figure) if path.suffix == ".png" else to_svg(figure, "speedup").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data)
    table = path.with_suffix(".csv")
    write_text(table, pd.DataFrame(results)[list(COLUMNS)].to_csv(index=False, float_format="%.4g"))
    return table
