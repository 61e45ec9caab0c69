"""Kernel measurements of ``spdf bench gemm --json`` as a figure like Figure 1 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from spdf_dist.base.atomic_files import write_bytes, write_text
from spdf_dist.report.figures import DASHES, MARKERS, add_legend, new_axes
from spdf_dist.report.style import MUTED, drawing, to_png, to_svg

COLOURS = {"forward": "#2f7fc4", "dx": "#1b9c78", "dw": "#e0672b"}
COLUMNS = (
    *("out", "in", "tokens", "threads", "dtype", "op", "sparsity"),
    *("theoretical", "speedup", "speedup_lower", "median_ms", "best_dense", "backend"),
)


def is_gemm_bench(content: dict[str, Any]) -> bool:
    """Whether a JSON object is the output of ``spdf bench gemm --json``."""
    results, needed = content.get("results"), {"op", "speedup", "sparsity", "out", "in"}
    rows = results if isinstance(results, list) else []
    return bool(rows) and all(isinstance(row, dict) and needed <= set(row) for row in rows)


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


def speedup_points(results: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """(sparsity in %, speed-up over the best dense back end) by operation."""
    rows = [row for row in results if row["speedup"] is not None]
    found = {op: sorted((100 * row["sparsity"], row["speedup"]) for row in rows if row["op"] == op) for op in COLOURS}
    return {op: points for op, points in found.items() if points}


def speedup_figure(title: str, results: Sequence[dict[str, Any]]) -> Figure:
    """Measured and theoretical speed-up, 1 / (1 - s), against sparsity s (paper, appendix C, Figure 1)."""
    figure, axes = new_axes(title, "sparsity, %", "speed-up over the best dense product", 3.8)
    lines = speedup_points(results)
    highest = max([50.0, *(x for points in lines.values() for x, _ in points)])
    x = np.linspace(0, highest, 101)
    axes.plot(x, 1 / (1 - x / 100), label="theoretical, 1 / (1 - s)", color=MUTED, linestyle=DASHES[1])
    for op, points in lines.items():
        axes.plot(*zip(*points, strict=True), label=op, color=COLOURS[op], marker="o", **MARKERS)
    axes.axhline(1, color=MUTED, linewidth=0.8)
    axes.set_xlim(0, highest)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.grid(axis="x", visible=False)
    add_legend(axes, "upper left")
    return figure


def write_speedup_figure(path: Path, results: Sequence[dict[str, Any]], title: str) -> Path:
    """Draw measured and theoretical speed-up against sparsity, and write a CSV of the points beside the figure.

    The suffix of ``path`` is .png or .svg. Returns the path of the CSV.
    """
    with drawing():
        figure = speedup_figure(title, results)
        data = to_png(figure) if path.suffix == ".png" else to_svg(figure, "speedup").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data)
    table = path.with_suffix(".csv")
    write_text(table, pd.DataFrame(results)[list(COLUMNS)].to_csv(index=False, float_format="%.4g"))
    return table
