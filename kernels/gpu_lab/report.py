"""The tables and the figure of a results file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file without an incomplete last line; none if there is no file."""
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def columns(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def number(value: float, unit: str = "") -> str:
    """A number with three digits."""
    return f"{value:.3g}{unit}"


def tables(lines: list[dict[str, Any]]) -> str:
    """All results as Markdown."""
    machine = next((line for line in lines if line["part"] == "machine"), {})
    parts = [", ".join(f"{key}: {value}" for key, value in machine.items() if key != "part")]
    rows: list[tuple[Any, ...]]
    ceilings = [line for line in lines if line["part"] == "ceiling"]
    if ceilings:
        rows = [
            (c["what"], number(c.get("tflops", c.get("tb_s", 0)), " TFLOP/s" if "tflops" in c else " TB/s"))
            for c in ceilings
        ]
        parts.append(columns(("ceiling", "rate"), rows))
    products = [line for line in lines if line["part"] in ("dense", "blocks") and "ms" in line]
    if products:
        rows = [
            (
                p["model"],
                p["linear"],
                p["product"],
                "dense" if p["part"] == "dense" else f"{p['kind']} {p['block']}, {p['density']:.0%} kept",
                p.get("configuration", "cuBLAS"),
                number(1e3 * p["ms"]),
                f"{p['times_dense']:.2f}x" if "times_dense" in p else f"{p['tflops']:.0f} TFLOP/s",
            )
            for p in products
        ]
        parts.append(columns(("model", "linear", "product", "weight", "configuration", "us", "dense / own"), rows))
    layers = [line for line in lines if line["part"] == "layer"]
    if layers:
        rows = [
            (
                s["model"],
                f"{s['kind']} {s['block']}",
                f"{s['density']:.0%}",
                s["configuration"],
                f"{s['times_dense']:.2f}x",
            )
            for s in layers
        ]
        parts.append(columns(("model", "blocks", "kept", "configuration", "all linears of a layer, dense / own"), rows))
    expands = [line for line in lines if line["part"] == "expand" and "ms" in line]
    if expands:
        rows = [
            (
                e["model"],
                e["linear"],
                number(1e3 * e["expand_ms"]),
                number(1e3 * e["gather_ms"]),
                f"{e['times_dense']:.3f}x",
            )
            for e in expands
        ]
        parts.append(columns(("model", "linear", "expand, us", "gather, us", "three products, dense / own"), rows))
    attentions = [line for line in lines if line["part"] == "attention" and "ms" in line]
    if attentions:
        rows = [(a["head"], a["backend"], number(a["ms"]), number(a["tflops"])) for a in attentions]
        parts.append(columns(("head size", "attention", "ms, forward and backward", "TFLOP/s"), rows))
    steps = [line for line in lines if line["part"] == "step" and "ms" in line]
    if steps:
        rows = [
            (
                s["model"],
                s["execution"],
                number(s["ms"]),
                f"{s['tokens_per_s']:,.0f}",
                f"{s['mfu']:.1%}" if s.get("mfu") else "",
                f"{s['memory_bytes'] / 1e9:.1f}",
                f"{s['times_dense']:.2f}x" if s.get("times_dense") else "",
            )
            for s in steps
        ]
        parts.append(columns(("model", "execution", "ms per step", "tokens/s", "MFU", "GB", "dense / own"), rows))
    groups = [line for line in steps if line.get("groups_us")]
    if groups:
        names = list(dict.fromkeys(name for line in groups for name in line["groups_us"]))
        rows = [
            (
                line["model"],
                line["execution"],
                *(number(line["groups_us"].get(name, 0.0) / 1e3) for name in names),
                number(line["ms"] - sum(line["groups_us"].values()) / 1e3),
            )
            for line in groups
        ]
        parts.append(columns(("model", "execution", *(f"{name}, ms" for name in names), "no kernel, ms"), rows))
    fused = [line for line in lines if line["part"] == "elementwise" and "ms" in line]
    if fused:
        rows = [
            (
                line["model"],
                line["function"],
                number(1e3 * line["ms"]),
                number(1e3 * line["torch_ms"]),
                f"{line['times_torch']:.2f}x",
                number(line["tb_s"]),
            )
            for line in fused
        ]
        head = ("model", "forward and backward", "fused, us", "torch, us", "torch / fused", "TB/s")
        parts.append(columns(head, rows))
    runs = curves(lines)
    if runs:
        rows = [
            (name, points[-1]["step"], f"{points[-1]['loss']:.3f}", f"{points[-1]['tokens_per_s']:,.0f}")
            for name, points in runs.items()
        ]
        parts.append(columns(("real run, GPT-2 Small", "steps", "last loss", "tokens/s"), rows))
    checks = [line for line in lines if line["part"] == "losses" and "difference" in line]
    if checks:
        rows = [(c["execution"], c["precision"], f"{c['difference']:.1e}") for c in checks]
        parts.append(columns(("losses of a tiny model", "precision", "largest difference from the CPU's"), rows))
    errors = [f"* {line['part']}: {line['error']}" for line in lines if "error" in line]
    for line in lines:
        if line["part"] == "tests":
            errors += [f"* tests: {line['summary']}", *(f"* {failed}" for failed in line.get("failed", []))]
    if errors:
        parts.append("\n".join(errors))
    return "\n\n".join(parts)


def curves(lines: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The lines of the real run by execution."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if line["part"] == "run" and "loss" in line:
            found.setdefault(line["execution"], []).append(line)
    return found


def dense_step(steps: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The dense step with the fused kernels."""
    return next((s for s in steps if s["level"] == 0 and s["fused"]), None)


def by_kind(steps: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """(sparsity, ms per step) of each kind of mask and execution, from the dense step on."""
    dense = dense_step(steps)
    found: dict[str, list[tuple[float, float]]] = {}
    for step in steps:
        if step["level"] > 0:
            first = [] if dense is None else [(0.0, dense["ms"])]
            found.setdefault(step["kind"], first).append((step["level"], step["ms"]))
    return {kind: sorted(points) for kind, points in found.items()}


def limit(steps: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """(sparsity, ms): the dense step's time, reduced in proportion to the FLOPs."""
    dense = dense_step(steps)
    return [] if dense is None else sorted({(s["level"], dense["ms"] * s["flops"] / dense["flops"]) for s in steps})


def draw(lines: list[dict[str, Any]], path: Path) -> bool:
    """Draw the time of a step over sparsity, with the limit by FLOPs, and the real run's losses. False without data."""
    steps = [s for s in lines if s["part"] == "step" and "ms" in s]
    models = list(dict.fromkeys(s["model"] for s in steps))
    runs = curves(lines)
    panels = len(models) + bool(runs)
    if not panels:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(1, panels, figsize=(4.5 * panels, 3.6), layout="constrained", squeeze=False)
    for model, axes in zip(models, grid[0], strict=False):
        own = [s for s in steps if s["model"] == model]
        for kind, points in by_kind(own).items():
            axes.plot(*zip(*points, strict=True), marker="o", label=kind)
        if bound := limit(own):
            axes.plot(*zip(*bound, strict=True), color="gray", linestyle="--", label="limit by FLOPs")
        axes.set(title=model, xlabel="sparsity", ylabel="ms per step", ylim=(0, None))
        axes.legend(fontsize="small")
    if runs:
        for name, curve in runs.items():
            grid[0][-1].plot([p["step"] for p in curve], [p["loss"] for p in curve], label=name)
        grid[0][-1].set(title="real run: bytes of this repository", xlabel="step", ylabel="loss")
        grid[0][-1].legend(fontsize="small")
    machine = next((line for line in lines if line["part"] == "machine"), {})
    figure.suptitle(str(machine.get("gpu", "interpreter: no time means anything")))
    figure.savefig(path)
    pyplot.close(figure)
    return True


def write_report(path: Path) -> int:
    """Print the tables, write them beside the file, and draw the figure. A failure of the figure is printed."""
    lines = read(path)
    text = tables(lines)
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)
    try:
        draw(lines, path.with_suffix(".svg"))
    except Exception as error:  # the tables are written; the machine may have no matplotlib, or another version
        print(f"no figure: {type(error).__name__}: {error}")
    return 0
