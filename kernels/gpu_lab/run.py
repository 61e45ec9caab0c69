"""Runs all parts in the order of their value, each within the remaining time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import torch

from gpu_lab import products, steps
from gpu_lab.cases import SMALL, SMOKE, XL, Bench
from gpu_lab.record import Record, machine_facts
from gpu_lab.report import write_report

ROOT = Path(__file__).resolve().parents[2]
TOKENS = 16384
TEST_PROCESSES = 8
"""Several test processes, because kernels compile at the first launch."""
RESERVE = 20.0
"""Seconds reserved for the report."""


def gpu_tests(record: Record, smoke: bool) -> None:
    """Run tests/gpu in a separate process, so that a fault of a kernel ends only that process."""
    arguments = [sys.executable, "-m", "pytest", "tests/gpu", "-p", "no:cacheprovider", "-o", "addopts="]
    if smoke:
        arguments += ["-k", "expand_and_gather"]
    if find_spec("xdist"):
        arguments += ["-n", str(0 if smoke else TEST_PROCESSES)]
    limit = 540 if smoke else 150
    began = time.monotonic()
    try:
        answer = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=limit)
        end = answer.stdout.strip().splitlines()[-1:] or answer.stderr.strip().splitlines()[-1:]
        failed = [line[:300] for line in answer.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        record.say(
            "tests", exit_code=answer.returncode, summary=" ".join(end), failed=failed,
            seconds=time.monotonic() - began,
        )  # fmt: skip
        if answer.returncode:
            print(answer.stdout[-6000:])
    except subprocess.TimeoutExpired:
        record.say("tests", exit_code=None, summary=f"stopped after {limit} s", seconds=time.monotonic() - began)


def compile_one(block: int, names: list[str]) -> None:
    """Compile into Triton's cache on the disk; runs in a worker process."""
    products.compile_ahead(Bench(torch.device("cuda"), 256, False), XL, block, names)


def compile_all(record: Record) -> None:
    """Compile all variants on all cores."""
    began = time.monotonic()
    jobs = [(block, [name]) for block in (128, 64) for name in products.variants(block)]
    workers = min(len(jobs), max(1, (os.cpu_count() or 2) - 2))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(compile_one, *zip(*jobs, strict=True)))
    record.say("compile", variants=len(jobs), workers=workers, seconds=time.monotonic() - began)


def run_lab(out: Path, seconds: float, smoke: bool, only: list[str] | None) -> int:
    """Write OUT/gpu_lab.jsonl, a table and a figure. Returns 1 if a test or a part failed, 2 without a GPU."""
    reason = products.can_run()
    if reason is not None:
        print(f"gpu_lab: the kernels do not run here: {reason}", file=sys.stderr)
        print("make gpu-pack collects what another machine needs; there: bash run.sh", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    path = out / "gpu_lab.jsonl"
    path.unlink(missing_ok=True)
    record = Record(path, seconds)
    bench = Bench(torch.device("cpu" if smoke else "cuda"), 64 if smoke else TOKENS, smoke)
    record.say("machine", smoke=smoke, **machine_facts())
    xl = SMOKE if smoke else XL
    small = SMOKE if smoke else SMALL
    density = 0.5 if smoke else 0.25
    dense_xl: dict[tuple[str, str], float] = {}
    dense_small: dict[tuple[str, str], float] = {}
    parts: dict[str, Callable[[], object]] = {
        "ceilings": lambda: products.ceilings(bench, record),
        "dense": lambda: dense_xl.update(products.dense(bench, record, "xl", xl)),
        "tests": lambda: gpu_tests(record, smoke),
        "compile": lambda: None if smoke else compile_all(record),
        "blocks128": lambda: products.blocks(bench, record, "xl", xl, 128, dense_xl, density=density),
        "blocks64": lambda: products.blocks(bench, record, "xl", xl, 64, dense_xl, density=density),
        "expand": lambda: products.expansion(bench, record, "xl", xl, dense_xl),
        "losses": lambda: steps.check_losses(record, smoke),
        "xl steps": lambda: steps.steps(
            record, "xl, 4 layers", steps.TINY if smoke else steps.XL_FOUR_LAYERS, (64,) if smoke else (128, 64), smoke
        ),
        "small steps": lambda: None if smoke else steps.steps(record, "small", steps.SMALL, (64,), smoke),
        "small dense": lambda: dense_small.update(products.dense(bench, record, "small", small)),
        "small blocks64": lambda: products.blocks(bench, record, "small", small, 64, dense_small, density=density),
        "small expand": lambda: products.expansion(bench, record, "small", small, dense_small),
        "attention": lambda: products.attention(bench, record),
        "unbalanced": lambda: products.blocks(bench, record, "xl", xl, 128, dense_xl, kind="unbalanced"),
        "variants128": lambda: products.blocks(
            bench, record, "xl", xl, 128, dense_xl, tried=list(products.variants(128))
        ),
        "variants64": lambda: products.blocks(bench, record, "xl", xl, 64, dense_xl, tried=list(products.variants(64))),
        "xl whole": lambda: None if smoke else steps.steps(record, "xl", steps.XL_WHOLE, (128,), smoke),
        "half": lambda: products.blocks(bench, record, "xl", xl, 128, dense_xl, density=0.5),
    }
    unknown = set(only or ()) - set(parts)
    if unknown:
        print(f"gpu_lab: no such part: {', '.join(sorted(unknown))}; known are {', '.join(parts)}", file=sys.stderr)
        return 2
    for name, part in parts.items():
        if only and name not in only:
            continue
        if record.left() < RESERVE:
            record.say("clock", skipped=name, left=record.left())
            continue
        began = time.monotonic()
        record.attempt(name, part)
        record.say("clock", finished=name, seconds=time.monotonic() - began, left=record.left())
    write_report(path)
    failed = [line for line in record.lines if "error" in line or line.get("exit_code")]
    return 1 if failed else 0
