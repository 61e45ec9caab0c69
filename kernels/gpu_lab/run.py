"""Runs all parts in the order of their value, each within its share of the time.

The parts run in a worker process. If a part crashes, hangs, or leaves the GPU in a state of error, a new worker runs
the parts after it. Parts find earlier results in the results file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch

from gpu_lab import layers, products, steps
from gpu_lab.cases import SMALL, SMOKE, XL, Bench
from gpu_lab.record import ROOT, Record, machine_info
from gpu_lab.report import read, write_report

TOKENS = 16384
TEST_PROCESSES = 8
"""Several test processes, because kernels compile at the first launch."""
RESERVE = 15.0
"""Seconds reserved for the report."""
GRACE = 20.0
"""Seconds that a part may take beyond its time before its worker is stopped."""
SMOKE_SECONDS = 1500.0
"""Time of a part in the interpreter, where times mean nothing and the machine may be busy."""
FRESH = 75
"""Exit code of a worker whose GPU is in a state of error."""


class Part(NamedTuple):
    """One section of the lab."""

    seconds: float
    """Its time. Measurements that would begin later are skipped. The times of all parts up to `real run` fit into eight
    minutes, and up to `losses` into four and a half. The parts after these run only if time is left."""
    action: Callable[[], object]


def gpu_tests(record: Record, smoke: bool) -> None:
    """Run tests/gpu in a separate process, so that a fault of a kernel ends only that process."""
    arguments = [sys.executable, "-m", "pytest", "tests/gpu", "-v", "-p", "no:cacheprovider", "-o", "addopts="]
    if smoke:
        arguments += ["-k", "expand_and_gather or activation"]
    if find_spec("xdist"):
        arguments += ["-n", str(0 if smoke else TEST_PROCESSES)]
    limit = SMOKE_SECONDS if smoke else max(30.0, record.part_left())
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
    except subprocess.TimeoutExpired as error:
        lines = (error.stdout or b"").decode(errors="replace").splitlines()
        failed = [line[:300] for line in lines if "FAILED" in line or "ERROR" in line]
        passed = sum("PASSED" in line for line in lines)
        record.say(
            "tests", exit_code=1 if failed else None, failed=failed, seconds=time.monotonic() - began,
            summary=f"stopped after {limit:.0f} s: {passed} passed, {len(failed)} failed",
        )  # fmt: skip


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


def parts(bench: Bench, record: Record) -> dict[str, Part]:
    """All parts by name, the most valuable first."""
    smoke = bench.smoke
    xl, small = (SMOKE, SMOKE) if smoke else (XL, SMALL)
    density = 0.5 if smoke else 0.25

    def blocks(model: str, block: int, **options: object) -> None:
        shapes = xl if model == "xl" else small
        products.blocks(bench, record, model, shapes, block, record.dense_ms(model), **{"density": density, **options})  # type: ignore[arg-type]

    def train(name: str, model: tuple[str, ...], cases: tuple[steps.Case, ...]) -> None:
        if not smoke:
            steps.steps(record, name, model, cases, smoke)
        elif cases is steps.XL_CASES:  # one part is enough in the interpreter
            steps.steps(record, name, steps.TINY, steps.SMOKE_CASES, smoke)

    def variants(block: int) -> None:
        if not smoke:  # where all configurations are the same
            blocks("xl", block, tried=list(products.variants(block)))

    return {
        "ceilings": Part(8, lambda: products.ceilings(bench, record)),
        "dense": Part(8, lambda: products.dense(bench, record, "xl", xl)),
        "compile": Part(40, lambda: None if smoke else compile_all(record)),
        "blocks128": Part(12, lambda: blocks("xl", 128)),
        "blocks64": Part(12, lambda: blocks("xl", 64)),
        "variants128": Part(20, lambda: variants(128)),
        "variants64": Part(20, lambda: variants(64)),
        "xl steps": Part(55, lambda: train("xl, 4 layers", steps.XL_FOUR_LAYERS, steps.XL_CASES)),
        "losses": Part(35, lambda: steps.check_losses(record, smoke)),
        "tests": Part(65, lambda: gpu_tests(record, smoke)),
        "elementwise": Part(15, lambda: layers.elementwise(bench, record, "xl", 128 if smoke else 2048)),
        "more xl steps": Part(50, lambda: train("xl, 4 layers", steps.XL_FOUR_LAYERS, steps.MORE_XL_CASES)),
        "small steps": Part(40, lambda: train("small", steps.SMALL, steps.SMALL_CASES)),
        "expand": Part(12, lambda: products.expansion(bench, record, "xl", xl, record.dense_ms("xl"))),
        "attention": Part(12, lambda: products.attention(bench, record)),
        "real run": Part(60, lambda: steps.real_run(record, steps.TINY if smoke else steps.SMALL, smoke)),
        "small dense": Part(8, lambda: products.dense(bench, record, "small", small)),
        "small blocks64": Part(15, lambda: blocks("small", 64)),
        "small expand": Part(10, lambda: products.expansion(bench, record, "small", small, record.dense_ms("small"))),
        "unbalanced": Part(15, lambda: blocks("xl", 128, kind="unbalanced", density=0.25)),
        "xl whole": Part(90, lambda: train("xl", steps.XL_WHOLE, steps.WHOLE_CASES)),
        "half": Part(20, lambda: blocks("xl", 128, density=0.5)),
    }


def gpu_is_sound(bench: Bench) -> bool:
    """Whether the GPU still computes in this process. After an illegal access it does not."""
    try:
        return float(torch.ones(8, device=bench.device).sum()) == 8.0
    except Exception as error:  # torch raises several kinds for errors of the driver
        print(f"gpu_lab: the GPU is in a state of error: {error}", file=sys.stderr)
        return False


def work(out: Path, seconds: float, smoke: bool, names: list[str]) -> int:
    """Run parts in this process; returns FRESH when the rest needs a new process."""
    path = out / "gpu_lab.jsonl"
    record = Record(path, seconds, lines=read(path))
    bench = Bench(torch.device("cuda"), 64 if smoke else TOKENS, smoke)
    known = parts(bench, record)
    for name in names:
        if record.left() <= 0:
            record.say("clock", skipped=name, left=record.left())
            continue
        began = time.monotonic()
        limit = min(SMOKE_SECONDS if smoke else known[name].seconds, record.left())
        record.part_ends = began + limit
        record.say("clock", begun=name, limit=limit)
        record.attempt(name, known[name].action)
        sound = gpu_is_sound(bench)
        record.say("clock", finished=name, seconds=time.monotonic() - began, left=record.left(), sound=sound)
        if not sound:
            return FRESH
    return 0


def watch(worker: subprocess.Popen[bytes], path: Path) -> str | None:
    """Wait for a worker; returns why it was stopped, None if it ended itself."""
    seen, limit = "", GRACE + 60  # the start of the first part includes the imports
    began = time.monotonic()
    while worker.poll() is None:
        time.sleep(0.2)
        begun = [line for line in read(path) if "begun" in line]
        if begun and begun[-1]["begun"] != seen:
            seen, limit, began = begun[-1]["begun"], begun[-1]["limit"] + GRACE, time.monotonic()
        if time.monotonic() - began > limit:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
            return f"stopped after {limit:.0f} s"
    return None


def run_lab(out: Path, seconds: float, smoke: bool, only: list[str] | None) -> int:
    """Write OUT/gpu_lab.jsonl, a table and figures. Returns 1 if a test or a part failed, 2 without a GPU."""
    reason = products.can_run()
    if reason is not None:
        print(f"gpu_lab: the kernels do not run here: {reason}", file=sys.stderr)
        print("make gpu-pack collects what another machine needs; there: bash run.sh", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    path = out / "gpu_lab.jsonl"
    path.unlink(missing_ok=True)
    record = Record(path, 4 * SMOKE_SECONDS if smoke else seconds - RESERVE)
    bench = Bench(torch.device("cpu"), 0, smoke)
    names = list(parts(bench, record))
    unknown = set(only or ()) - set(names)
    if unknown:
        print(f"gpu_lab: no such part: {', '.join(sorted(unknown))}; known are {', '.join(names)}", file=sys.stderr)
        return 2
    todo = [name for name in names if not only or name in only]
    record.say("machine", smoke=smoke, **machine_info())
    while todo:
        command = [sys.executable, "-m", "gpu_lab", "work", "--out", str(out), "--seconds", str(record.left())]
        worker = subprocess.Popen([*command, *(["--smoke"] if smoke else []), "--parts", *todo], start_new_session=True)
        why = watch(worker, path)
        done = {line.get("finished") or line.get("skipped") for line in read(path) if line["part"] == "clock"}
        left = [name for name in todo if name not in done]
        if worker.returncode not in (0, FRESH) and left:  # the part that ran at that time is not repeated
            record.say(left[0], error=why or f"the process ended with {worker.returncode}")
            left = left[1:]
        if left == todo:  # a worker that did nothing would be started for ever
            record.say("clock", error=f"the process ended with {worker.returncode}", skipped=", ".join(left))
            break
        todo = left
    write_report(path)
    failed = [line for line in read(path) if "error" in line or line.get("exit_code")]
    return 1 if failed else 0
