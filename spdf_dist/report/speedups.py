"""Kernel measurements of ``spdf bench gemm --json``: text tables, and a figure like Figure 1 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spdf_dist.accounting.text_table import text_table
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
            lines.append(Series(op, colour, [x for x, _ in points], [y for _, y in points]))
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


def gemm_table(results: Sequence[dict[str, Any]]) -> str:
    """A text table of measured products, one row per product."""
    rows = []
    for r in results:
        row = {
            "out x in": f"{r['out']}x{r['in']}",
            "s": f"{r['sparsity']:.2f}",
            "thr": str(r["threads"]),
            "product": r["op"],
            "back end": r["backend"],
            "ms (quartiles)": f"{r['median_ms']:.2f} ({r['q1_ms']:.2f}-{r['q3_ms']:.2f})",
            "best dense ms": f"{r['best_dense']} {r['dense'][r['best_dense']]['median_ms']:.2f}",
            "speed-up": f"{r['speedup']:.2f}x (>= {r['speedup_lower']:.2f})",
            "limit": f"{r['theoretical']:.1f}x",
            "of peak": "" if r.get("peak_fraction") is None else f"{100 * r['peak_fraction']:.0f}%",
            "others against best dense": "  ".join(
                f"{name} {peer['speedup']:.2f}x" for name, peer in r["peers"].items()
            ),
        }
        rows.append(row)
    return text_table(list(rows[0]), [list(row.values()) for row in rows])


def gemm_line(r: dict[str, Any]) -> str:
    """One line of text for a measured product, for output during the measurement."""
    threads = f"{r['threads']} thread" + ("s" if r["threads"] > 1 else "")
    case = f"{r['out']}x{r['in']} {100 * r['sparsity']:.0f}% {threads} {r['op']} ({r['backend']})"
    return f"{case}: {r['median_ms']:.2f} ms, {r['speedup']:.2f}x dense (>= {r['speedup_lower']:.2f})"


def state_table(states: Sequence[dict[str, Any]]) -> str:
    """A text table of preparation times and sizes of model state."""
    rows = []
    for state in states:
        for label in ("compact", "generated"):
            s = state[label]
            name = [f"{state['out']}x{state['in']}", f"{state['sparsity']:.2f}", label]
            if "missing" in s:
                rows.append([*name, "", "", "", s["missing"]])
                continue
            numbers = (s["index_bytes_per_nonzero"], s["code_bytes_per_nonzero"])
            rows.append([*name, f"{s['prepare_ms']:.1f}", *(f"{n:.2f}" for n in numbers), f"{s['of_dense']:.3f}"])
    head = ["out x in", "s", "path", "prepare ms", "index B/nnz", "code B/nnz", "state / dense"]
    return text_table(head, rows)


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
