"""Tables and the speed-up figure of ``spdf bench``."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spdf_dist.accounting.text_table import text_table
from spdf_dist.base.atomic_files import write_bytes
from spdf_dist.config.errors import UserError
from spdf_dist.report.bench import COLOURS
from spdf_dist.report.style import INK, MUTED, drawing, to_png, to_svg

COLUMNS = ("op", "sparsity", "theoretical", "speedup", "speedup_lower", "median_ms", "best_dense", "backend")


def gemm_table(results: Sequence[dict[str, Any]]) -> str:
    """Text table of measured products, one line each."""
    rows = []
    for r in results:
        peers = "  ".join(f"{name} {peer['speedup']:.2f}x" for name, peer in r["peers"].items())
        dense = r["dense"][r["best_dense"]]
        rows.append(
            [
                f"{r['out']}x{r['in']}",
                f"{r['sparsity']:.2f}",
                str(r["threads"]),
                r["op"],
                r["backend"],
                f"{r['median_ms']:.2f} ({r['q1_ms']:.2f}-{r['q3_ms']:.2f})",
                f"{r['best_dense']} {dense['median_ms']:.2f}",
                f"{r['speedup']:.2f}x (>= {r['speedup_lower']:.2f})",
                f"{r['theoretical']:.1f}x",
                "" if r.get("peak_fraction") is None else f"{100 * r['peak_fraction']:.0f}%",
                peers,
            ]
        )
    head = ["out x in", "s", "thr", "product", "back end", "ms (quartiles)", "best dense ms", "speed-up", "limit"]
    return text_table([*head, "of peak", "others against best dense"], rows)


def state_table(states: Sequence[dict[str, Any]]) -> str:
    """Text table of preparation time and bytes of model state."""
    rows = []
    for state in states:
        for label in ("compact", "generated"):
            s = state[label]
            name = [f"{state['out']}x{state['in']}", f"{state['sparsity']:.2f}", label]
            if "missing" in s:
                rows.append([*name, "", "", "", s["missing"]])
                continue
            rows.append(
                [
                    *name,
                    f"{s['prepare_ms']:.1f}",
                    f"{s['index_bytes_per_nonzero']:.2f}",
                    f"{s['code_bytes_per_nonzero']:.2f}",
                    f"{s['of_dense']:.3f}",
                ]
            )
    head = ["out x in", "s", "path", "prepare ms", "index B/nnz", "code B/nnz", "state / dense"]
    return text_table(head, rows)


def speedup_csv(results: Sequence[dict[str, Any]]) -> str:
    """The measured points of the speed-up figure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["out", "in", "tokens", "threads", "dtype", *COLUMNS])
    for r in results:
        fixed = [r["out"], r["in"], r["tokens"], r["threads"], r["dtype"]]
        writer.writerow(fixed + [f"{v:.4g}" if isinstance(v, float) else v for v in (r[c] for c in COLUMNS)])
    return text.getvalue()


def write_speedup_figure(path: Path, results: Sequence[dict[str, Any]], title: str) -> Path:
    """Draw measured against theoretical speed-up over sparsity (SPDF, appendix C, figure 1), and a CSV beside it.

    Returns the path of the CSV. Raises UserError for another suffix than .png or .svg.
    """
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"--plot {path}: the suffix says the format; it must be .png or .svg")
    levels = sorted({r["sparsity"] for r in results})
    with drawing():
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(7.2, 4.4))
        at = list(range(len(levels)))
        theory = [1.0 / (1.0 - level) for level in levels]
        axes.plot(at, theory, color=MUTED, linestyle="--", marker="o", markersize=4, label="theoretical, 1 / (1 - s)")
        for operation, colour in COLOURS.items():
            points = {r["sparsity"]: r["speedup"] for r in results if r["op"] == operation}
            if points:
                axes.plot(at, [points[level] for level in levels], color=colour, marker="o", label=operation)
        axes.axhline(1.0, color=INK, linewidth=0.8)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        axes.set_xticks(at, [f"{100 * level:g}%" for level in levels])
        axes.set_xlabel("sparsity")
        axes.set_ylabel("speed-up over the best dense product")
        axes.set_title(title)
        axes.legend()
        data = to_png(figure) if path.suffix == ".png" else to_svg(figure, "speedup").encode()
        plt.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data)
    table = path.with_suffix(".csv")
    write_bytes(table, speedup_csv(results).encode())
    return table
