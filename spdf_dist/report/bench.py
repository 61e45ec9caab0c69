"""Kernel measurements of ``spdf bench gemm --json`` as the lines of the paper's Figure 1."""

from __future__ import annotations

from typing import Any

from spdf_dist.report.figures import Series

COLOURS = {"forward": "#2f7fc4", "dx": "#1b9c78", "dw": "#e0672b"}


def is_gemm_bench(content: dict[str, Any]) -> bool:
    """Whether a JSON object is what ``spdf bench gemm --json`` prints."""
    results = content.get("results")
    return isinstance(results, list) and bool(results) and all(is_row(row) for row in results)


def is_row(row: object) -> bool:
    """Whether it is one measurement."""
    return isinstance(row, dict) and {"op", "speedup", "sparsity", "out", "in"} <= set(row)


def speedup_series(bench: dict[str, Any]) -> list[Series]:
    """Speed-up over the best dense back end by sparsity (%), one line an operation, of the largest square shape."""
    rows = [row for row in bench.get("results", []) if row.get("speedup") is not None and row.get("op") in COLOURS]
    square = [row for row in rows if row["out"] == row["in"]]
    if not square:
        return []
    size = max(row["out"] for row in square)
    threads = max(row.get("threads", 1) for row in square)
    square = [row for row in square if row["out"] == size and row.get("threads", 1) == threads]
    lines = []
    for op, colour in COLOURS.items():
        points = sorted(
            (100 * row["sparsity"], row["speedup"]) for row in square if row["out"] == size and row["op"] == op
        )
        if points:
            lines.append(Series(op, colour, [x for x, _ in points], [y for _, y in points]))
    return lines


def bench_note(bench: dict[str, Any]) -> str:
    """Shape, machine and threads of the measurement."""
    sizes = [row["out"] for row in bench.get("results", []) if row.get("out") == row.get("in")]
    machine = bench.get("machine") or {}
    name = machine.get("cpu") if isinstance(machine, dict) else machine
    return f"{max(sizes, default=0)} x {max(sizes, default=0)} product, {name}, {bench.get('threads', '?')} threads."
