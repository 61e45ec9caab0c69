"""The cost of a workflow before it starts: jobs, FLOPs and time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spdf_dist.accounting.phases import run_flops
from spdf_dist.base.numbers import clock
from spdf_dist.config.load import build
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.workflow_folder import PRETRAIN
from spdf_launcher.plan import Job

TRAINING_SHARE = 0.4
"""Model FLOP/s of training as a share of the FLOP/s of matrix products, on a CPU."""
GPU_FLOPS = 150e12
"""Assumed model FLOP/s per GPU."""


@dataclass(frozen=True)
class Cost:
    """Cost of the pre-training in a set of jobs."""

    flops: float = 0.0
    gpu_seconds: float = 0.0
    """Of the jobs with GPUs, at ``GPU_FLOPS``."""
    cpu_seconds: float = 0.0
    """Of the other jobs, on this machine."""


def pretraining_flops(job: Job) -> float:
    """Model FLOPs of a pre-training job, as the paper counts them."""
    return float(run_flops(build(PretrainConfig, known(job.config or {}), "")))


def known(tree: dict[str, Any]) -> dict[str, Any]:
    """A config without the values that other jobs determine, such as a learning rate. They do not change FLOPs."""
    return {
        key: known(value) if isinstance(value, dict) else value
        for key, value in tree.items()
        if not (isinstance(value, str) and "${" in value)
    }


def matrix_speed(seconds: float = 0.3) -> float:
    """FLOP/s of fp32 matrix products on this machine, measured for about ``seconds``."""
    import numpy as np

    size = 768
    a = np.ones((size, size), dtype=np.float32)
    a @ a
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        a @ a
        count += 1
    return count * 2 * size**3 / (time.perf_counter() - started)


def cost_of(jobs: Sequence[Job]) -> Cost:
    """FLOPs and time of the pre-training among ``jobs``."""
    flops, gpu, cpu = 0.0, 0.0, 0.0
    for job in jobs:
        if job.kind == PRETRAIN:
            own = pretraining_flops(job)
            flops += own
            gpu += own if job.resources.gpus_per_node else 0.0
            cpu += 0.0 if job.resources.gpus_per_node else own
    return Cost(flops, gpu / GPU_FLOPS, cpu / (TRAINING_SHARE * matrix_speed()) if cpu else 0.0)


def summary(jobs: Sequence[Job], wanted: set[str]) -> list[str]:
    """Lines with the number of jobs of each kind that would run, and the cost of their pre-training."""
    kinds = list(dict.fromkeys(job.kind for job in jobs))
    todo, done = (Counter(job.kind for job in jobs if (job.id in wanted) is want) for want in (True, False))
    lines = [f"  {kind:<14} {todo[kind]:>5} to run" + (f", {done[kind]} done" if done[kind] else "") for kind in kinds]
    cost = cost_of([job for job in jobs if job.id in wanted])
    if cost.flops:
        lines.append(f"pre-training: {cost.flops:.3g} model FLOPs")
    if cost.gpu_seconds:
        hours = cost.gpu_seconds / 3600
        lines.append(f"  about {hours:,.0f} GPU hours, at an assumed {GPU_FLOPS / 1e12:.0f} TFLOP/s per GPU")
    if cost.cpu_seconds:
        text = clock(cost.cpu_seconds)
        lines.append(f"  about {text} on this machine (estimated from the speed of its matrix products)")
    if any(job.kind != PRETRAIN for job in jobs if job.id in wanted):
        lines.append("fine-tuning, generation and scoring take further time, which depends on the data")
    return lines
