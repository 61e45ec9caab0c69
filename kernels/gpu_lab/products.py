"""The parts that measure single products: ceilings, dense, blocks, expansion, attention."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from spdf_kernels import triton as gpu
from spdf_kernels.triton.blocks import blocks_of
from spdf_kernels.triton.configurations import CONFIGURATIONS, Configuration, Tile
from torch import Tensor

from gpu_lab.cases import Bench, Weight, balanced_grid, relative_error, unbalanced_grid
from gpu_lab.record import Record

MAX_ERROR = 1e-2
"""Largest relative error, in the Frobenius norm, of a bfloat16 product against cuBLAS."""
Shapes = Mapping[str, tuple[int, int]]


def ceilings(bench: Bench, record: Record) -> None:
    """The two upper limits: a large matrix product and a copy."""
    n = 256 if bench.smoke else 8192
    a, b = bench.random(n, n), bench.random(n, n)
    record.say("ceiling", what=f"matmul {n}", tflops=2 * n**3 / bench.milliseconds(lambda: a @ b) / 1e9)
    source = torch.empty(2**16 if bench.smoke else 2**31, dtype=torch.uint8, device=bench.device).random_()
    target = torch.empty_like(source)
    record.say("ceiling", what="copy", tb_s=2 * source.numel() / bench.milliseconds(lambda: target.copy_(source)) / 1e9)


def dense(bench: Bench, record: Record, model: str, shapes: Shapes) -> None:
    """Time cuBLAS of each linear."""
    for linear, (out, inputs) in shapes.items():
        for product, action in dense_actions(bench, out, inputs).items():
            ms = bench.milliseconds(action)
            rate = 2 * bench.tokens * out * inputs / ms / 1e9
            record.say("dense", model=model, linear=linear, product=product, ms=ms, tflops=rate)


def dense_actions(bench: Bench, out: int, inputs: int) -> dict[str, Callable[[], Tensor]]:
    """The three products of a dense weight [out, inputs], y with its bias."""
    x, w, dy = bench.random(bench.tokens, inputs), bench.random(out, inputs), bench.random(bench.tokens, out)
    bias = bench.random(out)
    return {
        "y": lambda: torch.nn.functional.linear(x, w, bias),
        "dx": lambda: dy @ w,
        "dw": lambda: dy.t() @ x,
    }


def checked(action: Callable[[], Tensor], reference: Tensor) -> float:
    """The relative error of a product into memory full of NaN. Raises AssertionError above MAX_ERROR."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new tensors with NaN
    try:
        error = relative_error(action(), reference)
    finally:
        torch.use_deterministic_algorithms(before)
    assert error < MAX_ERROR, f"relative error {error:.1e}"
    return error


def variants(block: int) -> dict[str, Configuration]:
    """The shipped configuration, and others that may be faster."""
    shipped = CONFIGURATIONS[90, block]
    tried: list[tuple[int, int, int]] = {
        128: [(128, 8, 8), (256, 8, 6), (256, 8, 8), (64, 4, 8)],
        64: [(128, 4, 6), (128, 4, 8), (256, 8, 8), (256, 4, 6)],
    }[block]
    found = {"shipped": shipped}
    for tokens, warps, stages in tried:
        tile = Tile(tokens, 64, warps, stages)
        found[f"{tokens} tokens, {warps} warps, {stages} stages"] = replace_boxes(shipped, tile)
    dw = Tile(64, 0, 8 if block == 128 else 4, 4, group=1)
    found["dW one block a program"] = shipped._replace(sddmm_box=dw)
    found["dW 128 tokens"] = shipped._replace(sddmm_box=Tile(128, 0, 8 if block == 128 else 4, 3, group=2))
    return found


def replace_boxes(setting: Configuration, tile: Tile) -> Configuration:
    """A configuration with another tile for y and dX."""
    return setting._replace(spmm_box=tile, spmm_box_T=tile)


def block_actions(
    weight: Weight, bias: Tensor, block: int, setting: Configuration | None, boxes: bool, shares: int | None = None
) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    """(kernel, reference) of each product of a block mask."""
    from spdf_kernels.triton import products

    blocks = blocks_of(weight.pattern, (block,))
    assert blocks is not None
    shape = weight.pattern.shape
    mask = weight.pattern.mask()
    x, dy, values = weight.x, weight.dy, weight.values
    return {
        "y": (
            lambda: products.spmm(x, values, bias, blocks, shape, False, setting, boxes),
            lambda: torch.nn.functional.linear(x, weight.dense, bias),
        ),
        "dx": (
            lambda: products.spmm(dy, values, None, blocks, shape, True, setting, boxes),
            lambda: dy @ weight.dense,
        ),
        "dw": (
            lambda: products.sddmm(dy, x, blocks, weight.pattern.nnz, setting, boxes, shares),
            lambda: (dy.t() @ x)[mask],
        ),
    }


def blocks(
    bench: Bench,
    record: Record,
    model: str,
    shapes: Shapes,
    block: int,
    dense_ms: Mapping[tuple[str, str], float],
    *,
    kind: str = "balanced",
    density: float = 0.25,
    tried: Sequence[str] = ("shipped",),
) -> None:
    """Compare each product of a layer with a block mask with the dense one; then the sum over the layer."""
    settings = {"shipped": None} if bench.smoke else variants(block)
    best: dict[tuple[str, str], float] = {}
    for linear, (out, inputs) in shapes.items():
        rows, columns = out // block, inputs // block
        if out % block or inputs % block or columns * density < 1:
            record.say("blocks", model=model, linear=linear, block=block, skipped="too few blocks")
            continue
        if record.is_over(f"{model} {linear}, blocks of {block}"):
            continue
        if kind == "balanced":
            grid = balanced_grid(rows, columns, round(columns * density))
        else:
            grid = unbalanced_grid(rows, columns, density)
        weight = Weight.make(bench, grid.repeat_interleave(block, 0).repeat_interleave(block, 1))
        bias = bench.random(out)
        for name in tried if not bench.smoke else ("shipped",):
            actions = block_actions(weight, bias, block, settings[name], boxes=kind == "balanced")
            for product, (own, reference) in actions.items():
                if name != "shipped" and name.startswith("dW") != (product == "dw"):
                    continue
                fields = {"model": model, "linear": linear, "product": product, "block": block, "kind": kind}
                fields |= {"density": weight.pattern.density, "configuration": name}

                over = dense_ms.get((linear, product), float("nan"))
                measure = functools.partial(measured_block, bench, record, own, reference, over, fields)
                ms = record.attempt("blocks", measure, **fields)
                if ms is not None:
                    best[linear, product] = min(best.get((linear, product), float("inf")), ms)
    known = [key for key in best if key in dense_ms]
    if known:
        over = sum(dense_ms[key] for key in known) / sum(best[key] for key in known)
        record.say(
            "layer", model=model, block=block, kind=kind, density=density, products=len(known), times_dense=over,
            configuration="best of each" if len(tried) > 1 else "shipped",
        )  # fmt: skip


def measured_block(
    bench: Bench,
    record: Record,
    own: Callable[[], Tensor],
    reference: Callable[[], Tensor],
    dense_ms: float,
    fields: Mapping[str, Any],
) -> float:
    """Check a product, then time it; return milliseconds."""
    error = checked(own, reference())
    ms = bench.milliseconds(own, 60)
    record.say("blocks", **fields, ms=ms, times_dense=dense_ms / ms, relative_error=error)
    return ms


def expansion(
    bench: Bench, record: Record, model: str, shapes: Shapes, dense_ms: Mapping[tuple[str, str], float]
) -> None:
    """Time expand and gather of unstructured masks, and what they add to the three dense products."""
    from spdf_kernels.triton import products

    for linear, (out, inputs) in shapes.items():
        if record.is_over(f"{model} {linear}, expansion"):
            continue
        weight = Weight.make(bench, torch.rand(out, inputs, device=bench.device) < 0.25)
        assert torch.equal(products.expand(weight.values, weight.pattern), weight.dense), "expand is not exact"
        assert torch.equal(products.gather(weight.dense, weight.pattern), weight.values), "gather is not exact"
        ms = {name: bench.milliseconds(action, 60) for name, action in expansion_actions(weight).items()}
        own = ms["y"] + ms["dx"] + ms["dw"]
        three = sum(dense_ms.get((linear, product), float("nan")) for product in ("y", "dx", "dw"))
        fields = {"expand_ms": ms["expand"], "gather_ms": ms["gather"], "ms": own, "times_dense": three / own}
        record.say("expand", model=model, linear=linear, **fields)


def expansion_actions(weight: Weight) -> dict[str, Callable[[], Tensor]]:
    """Expand, gather and the three products of an unstructured mask."""
    from spdf_kernels.triton import products

    pattern, values, x, dy = weight.pattern, weight.values, weight.x, weight.dy
    return {
        "expand": lambda: products.expand(values, pattern),
        "gather": lambda: products.gather(weight.dense, pattern),
        "y": lambda: products.expanded_spmm(x, values, None, pattern, False),
        "dx": lambda: products.expanded_spmm(dy, values, None, pattern, True),
        "dw": lambda: products.expanded_sddmm(dy, x, pattern),
    }


def attention(bench: Bench, record: Record) -> None:
    """Back ends of causal attention, forward and backward, at the head sizes of both models."""
    from torch.nn.attention import SDPBackend

    length = 64 if bench.smoke else 2048
    backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    for heads, size in ((16, 128), (12, 64)):
        batch = max(1, bench.tokens // length)
        flops = 3.5 * 2 * batch * heads * length * length * size
        for backend in [SDPBackend.MATH] if bench.smoke else backends:
            fields = {"head": size, "backend": backend.name}
            if record.is_over(f"attention {size} {backend.name}"):
                continue
            action = attention_action(bench, length, batch, heads, size, backend)
            ms = record.attempt("attention", functools.partial(bench.milliseconds, action), **fields)
            if ms is not None:
                record.say("attention", **fields, ms=ms, tflops=flops / ms / 1e9)


def attention_action(bench: Bench, length: int, batch: int, heads: int, size: int, backend: Any) -> Callable[[], Any]:
    """Forward and backward of one back end, with operands in the model's layout: views of [T, B, H, K]."""
    from torch.nn.attention import sdpa_kernel

    q, k, v = (bench.random(length, batch, heads, size).permute(1, 2, 0, 3).requires_grad_() for _ in range(3))
    dy = torch.randn_like(q)

    def both() -> None:
        with sdpa_kernel([backend]):
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        torch.autograd.grad(y, (q, k, v), dy)

    return both


def compile_ahead(bench: Bench, shapes: Shapes, block: int, names: list[str]) -> None:
    """Run each variant once on few tokens, so that Triton compiles it into its cache."""
    few = replace(bench, tokens=256)
    for out, inputs in shapes.values():
        rows, columns = out // block, inputs // block
        if out % block or inputs % block or columns < 4:
            continue
        for kind in ("balanced", "unbalanced"):
            grid = balanced_grid(rows, columns, round(columns / 4)) if kind == "balanced" else None
            grid = unbalanced_grid(rows, columns, 0.25) if grid is None else grid
            weight = Weight.make(few, grid.repeat_interleave(block, 0).repeat_interleave(block, 1))
            bias = few.random(out)
            for name in names if kind == "balanced" else names[:1]:
                for shares in (1, 2):
                    actions = block_actions(weight, bias, block, variants(block)[name], kind == "balanced", shares)
                    for own, _ in actions.values():
                        try:
                            own()
                        except Exception as error:  # the measurement reports it
                            print(f"{name} at {out} x {inputs}: {error}")


def can_run() -> str | None:
    """Why the kernels do not run on this machine; None if they do."""
    return gpu.missing()
