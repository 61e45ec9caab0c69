"""The table and the figure of a results file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file without an incomplete last line."""
    lines = []
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
                p["place"],
                p["product"],
                "dense" if p["part"] == "dense" else f"{p['kind']} {p['block']}, {p['density']:.0%} kept",
                p.get("configuration", "cuBLAS"),
                number(1e3 * p["ms"]),
                f"{p['times_dense']:.2f}x" if "times_dense" in p else f"{p['tflops']:.0f} TFLOP/s",
            )
            for p in products
        ]
        parts.append(columns(("model", "place", "product", "weight", "configuration", "us", "dense / own"), rows))
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
                e["place"],
                number(1e3 * e["expand_ms"]),
                number(1e3 * e["gather_ms"]),
                f"{e['times_dense']:.3f}x",
            )
            for e in expands
        ]
        parts.append(columns(("model", "place", "expand, us", "gather, us", "three products, dense / own"), rows))
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
        parts.append(columns(("model", "execution", "ms a step", "tokens/s", "MFU", "GB", "dense / own"), rows))
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


def draw(lines: list[dict[str, Any]], path: Path) -> bool:
    """Draw speed-ups of layers and steps over dense, with the limit 1 / density. False without data."""
    layers = {
        (s["model"], f"{s['kind']} {s['block']}"): s["times_dense"]
        for s in lines
        if s["part"] == "layer" and s["times_dense"] == s["times_dense"]
    }
    steps = [s for s in lines if s["part"] == "step" and s.get("times_dense")]
    if not layers and not steps:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars = [(f"{model}: linears, {kind}", over) for (model, kind), over in layers.items()]
    bars += [(f"{s['model']}: step, {s['execution']}", s["times_dense"]) for s in steps]
    figure, axes = pyplot.subplots(figsize=(7, 0.8 + 0.35 * len(bars)), layout="constrained")
    axes.barh([name for name, _ in bars][::-1], [over for _, over in bars][::-1], color="tab:blue")
    axes.axvline(1.0, color="gray", linewidth=1)
    axes.axvline(4.0, color="gray", linewidth=1, linestyle="--")
    axes.set_xlabel("dense time / own time at 25% kept (dashed: the limit of the linears)")
    machine = next((line for line in lines if line["part"] == "machine"), {})
    axes.set_title(str(machine.get("gpu", "interpreter: no time means anything")))
    figure.savefig(path)
    pyplot.close(figure)
    return True


def write_report(path: Path) -> int:
    """Print the tables, write them beside the file, and draw the figure."""
    lines = read(path)
    text = tables(lines)
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)
    try:
        draw(lines, path.with_suffix(".svg"))
    except ImportError as error:
        print(f"no figure: {error}")
    return 0
