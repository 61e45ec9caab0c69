"""Whole training steps: time, MFU, memory, host synchronisations, and losses against the CPU's."""

from __future__ import annotations

import functools
import gc
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gpu_lab.record import Record

SEQUENCES = 8
"""Sequences of the micro-batch, which is the whole batch: 16,384 tokens at length 2,048."""
WARM_UP, TIMED = 3, 8
LOSS_STEPS = 4
MOST_DIFFERENCE = {"fp32": 1e-3, "bf16": 2e-2}
"""Largest relative difference of a loss on the GPU from the CPU's, by precision."""

SMALL = ("gpt2_small",)
XL_FOUR_LAYERS = ("gpt3_xl", "model.num_layers=4", "training.activation_checkpointing=false")
XL_WHOLE = ("gpt3_xl", "training.activation_checkpointing=false")
TINY = (
    "gpt2_small", "model.num_layers=1", "model.hidden_size=128", "model.num_attention_heads=2", "model.seq_length=32",
    "model.vocab_size=300", "training.lr=1e-2",
)  # fmt: skip


class Case(NamedTuple):
    """One model in one execution."""

    execution: str
    """`dense`, `masked` or `compressed`."""
    pattern: str = "unstructured"

    @property
    def label(self) -> str:
        """The name in tables."""
        return self.execution if self.pattern == "unstructured" else f"{self.execution}, {self.pattern}"


def cases(blocks: tuple[int, ...]) -> list[Case]:
    """The measurements of a model, the most valuable first."""
    return [
        Case("dense"),
        *(Case("compressed", f"balanced:{block}") for block in blocks),
        Case("compressed"),
        Case("masked"),
    ]


def load(model: tuple[str, ...], case: Case, device: str, level: float, precision: str) -> Any:
    """The config of one case."""
    from spdf_dist.config.load import load_config
    from spdf_dist.config.schema import PretrainConfig

    overrides = [
        f"device={device}", f"training.global_batch_size={SEQUENCES}", f"training.micro_batch_size={SEQUENCES}",
        "training.warmup_tokens=0", f"sparsity.level={level}", f"sparsity.pattern={case.pattern}",
        f"sparsity.execution={case.execution if case.execution != 'dense' else 'masked'}",
        f"training.precision={precision}",
    ]  # fmt: skip
    return load_config(PretrainConfig, model[0], [*model[1:], *overrides])


def steps(record: Record, name: str, model: tuple[str, ...], blocks: tuple[int, ...], smoke: bool) -> None:
    """Measure every case of one model in this process."""
    from spdf_dist.parallel.ranks import ALONE
    from spdf_dist.training.setup import start

    groups = None
    dense_ms: float | None = None
    for case in cases(blocks)[: 2 if smoke else None]:
        if record.left() < 45:
            record.say("clock", skipped=f"{name} {case.label}", left=record.left())
            continue
        config = load(model, case, "cpu" if smoke else "cuda", 0.5 if smoke else 0.75, "bf16")
        groups = groups or start(config, ALONE)
        action = functools.partial(measure, config, groups, case, smoke)
        facts = record.attempt("step", action, model=name, execution=case.label)
        if facts is not None:
            dense_ms = facts["ms"] if case.execution == "dense" else dense_ms
            over = None if dense_ms is None else dense_ms / facts["ms"]
            record.say("step", model=name, execution=case.label, times_dense=over, **facts)


def measure(config: Any, groups: Any, case: Case, smoke: bool) -> dict[str, Any]:
    """Milliseconds per step, and further facts of the step."""
    from spdf_dist.accounting.flops import training_flops
    from spdf_dist.accounting.hardware import recognise_gpu
    from spdf_dist.training.bench import build_engine, random_batch

    on_gpu = groups.device.type == "cuda"
    began = time.monotonic()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    engine = build_engine(config, groups, case.execution)
    batch = random_batch(config, groups)
    tokens = SEQUENCES * config.model.seq_length
    set_up = time.monotonic() - began

    step = functools.partial(one_step, engine, batch, tokens, config.training.lr)
    losses = [step() for _ in range(1 if smoke else WARM_UP)]
    seconds = []
    for _ in range(1 if smoke else TIMED):
        begin = time.perf_counter()
        losses.append(step())
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    ms = 1e3 * statistics.median(seconds)
    sparsity = None if case.execution == "dense" else config.sparsity
    flops = training_flops(config.model, sparsity) * SEQUENCES
    gpu = recognise_gpu(torch.cuda.get_device_name()) if on_gpu else None
    facts = {
        "ms": ms,
        "spread_ms": [1e3 * min(seconds), 1e3 * max(seconds)],
        "tokens_per_s": 1e3 * tokens / ms,
        "mfu": None if gpu is None else flops / (ms / 1e3) / gpu.bf16_flops,
        "memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else 0,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "set_up_s": set_up,
    }
    if on_gpu:
        facts |= {"synchronisations": synchronisations(step), "kernels_us": longest_kernels(step)}
    del engine, step
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    return facts


def one_step(engine: Any, batch: Any, tokens: int, lr: float) -> float:
    """The loss of one optimizer step."""
    return float(engine.step(batch, tokens, lr).loss)


def synchronisations(step: Any) -> int:
    """Number of times that the host waits for the device within one step, as torch reports them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def longest_kernels(step: Any, count: int = 14) -> dict[str, float]:
    """Microseconds per kernel in one step, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
        torch.cuda.synchronize()
    found = {event.key[:90]: float(event.self_device_time_total) for event in profiled.key_averages()}
    ordered = sorted(found.items(), key=lambda item: -item[1])[:count]
    return {"all": sum(found.values()), **dict(ordered)}


def losses(device: str, case: Case, precision: str) -> list[float]:
    """Losses of the first steps of a tiny model."""
    from spdf_dist.parallel.ranks import ALONE
    from spdf_dist.training.bench import build_engine, random_batch
    from spdf_dist.training.setup import start

    config = load(TINY, case, device, 0.5, precision)
    groups = start(config, ALONE)
    engine, batch = build_engine(config, groups, case.execution), random_batch(config, groups)
    tokens = SEQUENCES * config.model.seq_length
    return [engine.step(batch, tokens, config.training.lr).loss for _ in range(LOSS_STEPS)]


CHECKS = (
    (Case("compressed", "balanced:64"), "bf16"),
    (Case("dense"), "fp32"),
    (Case("compressed"), "fp32"),
    (Case("dense"), "bf16"),
    (Case("compressed"), "bf16"),
)


def print_losses(device: str, count: int) -> None:
    """Print the losses of the first CHECKS on one device as one JSON line; runs in a separate process."""
    print(json.dumps([losses(device, case, precision) for case, precision in CHECKS[:count]]))


def check_losses(record: Record, smoke: bool) -> None:
    """Compare the losses of tiny models on the GPU with those of the torch back end on the CPU."""
    found = {}
    count = 1 if smoke else len(CHECKS)
    for device in ("cpu", "gpu"):
        on = "cuda" if device == "gpu" and not smoke else "cpu"
        environment = {**os.environ, "TRITON_INTERPRET": str(int(device == "gpu" and smoke))}
        if device == "cpu":
            environment |= {"SPDF_KERNELS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": ""}
        answer = subprocess.run(
            [sys.executable, "-m", "gpu_lab", "losses", on, str(count)], capture_output=True, text=True,
            timeout=540 if smoke else 180,
            env=environment, cwd=Path(__file__).resolve().parents[2],
        )  # fmt: skip
        if answer.returncode:
            raise RuntimeError(f"on the {device}: {answer.stderr.strip()[-300:]}")
        found[device] = json.loads(answer.stdout.strip().splitlines()[-1])
    for (case, precision), on_gpu, on_cpu in zip(CHECKS[:count], found["gpu"], found["cpu"], strict=True):
        difference = max(abs(a / b - 1) for a, b in zip(on_gpu, on_cpu, strict=True))
        facts: dict[str, Any] = {"execution": case.label, "precision": precision, "difference": difference}
        if not difference < MOST_DIFFERENCE[precision]:
            facts["error"] = f"losses {on_gpu} on the GPU, {on_cpu} on the CPU"
        record.say("losses", **facts)
