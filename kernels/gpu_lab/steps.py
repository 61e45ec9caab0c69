"""Training steps: time by part, MFU, memory, host synchronisations; losses against the CPU's; a short real run."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from gpu_lab.record import ROOT, Record

SEQUENCES = 8
"""Sequences of the micro-batch, which is the whole batch: 16,384 tokens at length 2,048."""
WARM_UP, TIMED = 3, 8
LOSS_STEPS = 4
MAX_DIFFERENCE = {"fp32": 1e-3, "bf16": 2e-2}
"""Largest relative difference of a loss on the GPU from the CPU's, by precision."""

SMALL = ("gpt2_small",)
XL_FOUR_LAYERS = ("gpt3_xl", "model.num_layers=4", "training.activation_checkpointing=false")
XL_WHOLE = ("gpt3_xl", "training.activation_checkpointing=false")
TINY = (
    "gpt2_small", "model.num_layers=1", "model.hidden_size=128", "model.num_attention_heads=2", "model.seq_length=16",
    "model.vocab_size=300", "training.lr=1e-2",
)  # fmt: skip


class Case(NamedTuple):
    """One model in one execution."""

    execution: str
    """`dense`, `masked` or `compressed`."""
    pattern: str = "unstructured"
    level: float = 0.75
    fused: bool = True
    """Whether norms and activation functions use the fused kernels."""

    @property
    def label(self) -> str:
        """The name in tables."""
        words = [self.execution]
        if self.execution != "dense":
            words += [self.pattern, f"{self.level:.3g}"]
        return ", ".join(words if self.fused else [*words, "torch's norms and activations"])


DENSE, PLAIN = Case("dense"), Case("dense", fused=False)
XL_CASES = (
    DENSE,
    Case("compressed", "balanced:128"),
    Case("compressed", "balanced:64"),
    Case("compressed"),
)
MORE_XL_CASES = (
    PLAIN,
    Case("compressed", "balanced:128", 0.5),
    Case("compressed", "balanced:128", 0.875),
    Case("masked"),
    Case("compressed", level=0.5),
    Case("compressed", level=0.875),
)
SMALL_CASES = (DENSE, Case("compressed", "balanced:64"), PLAIN, Case("compressed", "balanced:64", 0.5))
WHOLE_CASES = (DENSE, Case("compressed", "balanced:128"), Case("compressed"))
SMOKE_CASES = (DENSE, Case("compressed", "balanced:64", 0.5), PLAIN)
"""The measurements of a model, the most valuable first. 64 is the block of GPT-2 Small, whose width is 6 * 128."""


def load(model: tuple[str, ...], case: Case, device: str, precision: str) -> Any:
    """The config of one case."""
    from spdf_dist.config.load import load_config
    from spdf_dist.config.schema import PretrainConfig

    overrides = [
        f"device={device}", f"training.global_batch_size={SEQUENCES}", f"training.micro_batch_size={SEQUENCES}",
        "training.warmup_tokens=0", f"sparsity.level={case.level}", f"sparsity.pattern={case.pattern}",
        f"sparsity.execution={case.execution if case.execution != 'dense' else 'masked'}",
        f"training.precision={precision}",
    ]  # fmt: skip
    return load_config(PretrainConfig, model[0], [*model[1:], *overrides])


started: list[Any] = []
"""The groups of this process."""


def groups_for(config: Any) -> Any:
    """This process's groups, which are started once."""
    from spdf_dist.base.rank_variables import SINGLE_PROCESS
    from spdf_dist.training.setup import start

    if not started:
        started.append(start(config, SINGLE_PROCESS))
    return started[0]


def steps(record: Record, name: str, model: tuple[str, ...], cases: tuple[Case, ...], smoke: bool) -> None:
    """Measure the cases of one model while the part's time lasts."""
    dense_ms = record.dense_step_ms(name, DENSE.label)
    for case in cases:
        if record.is_over(f"{name} {case.label}"):
            continue
        config = load(model, case, "cuda", "bf16")
        action = functools.partial(measure, config, groups_for(config), case, smoke)
        fields = record.attempt("step", action, model=name, execution=case.label)
        if fields is not None:
            dense_ms = fields["ms"] if case == DENSE else dense_ms
            over = None if dense_ms is None else dense_ms / fields["ms"]
            level = 0.0 if case.execution == "dense" else case.level
            record.say(
                "step", model=name, execution=case.label, kind=f"{case.execution} {case.pattern}", level=level,
                fused=case.fused, times_dense=over, **fields,
            )  # fmt: skip


@contextlib.contextmanager
def layers_of(case: Case) -> Iterator[None]:
    """Run the layers as the case wants: with fused kernels, or as where these do not run."""
    from spdf_dist.model import fused, layers

    before = layers.unusable
    if not case.fused:
        layers.unusable = fused.unusable = lambda x: "not wanted in this measurement"
    try:
        yield
    finally:
        layers.unusable = fused.unusable = before


def measure(config: Any, groups: Any, case: Case, smoke: bool) -> dict[str, Any]:
    """Milliseconds per step, and further fields of the step."""
    with layers_of(case):
        return measured(config, groups, case, smoke)


def measured(config: Any, groups: Any, case: Case, smoke: bool) -> dict[str, Any]:
    """The fields of `measure`, with the layers as they are."""
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
    fields = {
        "ms": ms,
        "spread_ms": [1e3 * min(seconds), 1e3 * max(seconds)],
        "tokens_per_s": 1e3 * tokens / ms,
        "mfu": None if gpu is None else flops / (ms / 1e3) / gpu.bf16_flops,
        "flops": flops,
        "memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else 0,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "set_up_s": set_up,
    }
    if on_gpu:
        kernels = kernel_times(step)
        longest = sorted(kernels.items(), key=lambda item: -item[1])[:14]
        fields |= {
            "synchronisations": synchronisations(step),
            "groups_us": by_group(kernels),
            "kernels_us": {name[:90]: us for name, us in longest},
        }
    del engine, step
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    return fields


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


GROUPS = {
    "attention": r"flash|fmha|sdpa|attention|cudnn",
    "loss": r"cross_entropy|shard_statistics|shard_gradient|softmax|nll",
    "optimizer": r"adam|multi_tensor|foreach|lamb",
    "products": r"gemm|nvjet|cutlass|cublas|spmm|sddmm|^expand|^gather|only_kept|splitk|xmma|gemv",
    "fused norms and activations": r"add_norm|bias_gelu|swiglu|rotary",
    "copies": r"memcpy|memset",
}
"""Groups of kernels by a pattern of their names, the first that fits; all others are `elementwise`."""


def by_group(kernels: Mapping[str, float]) -> dict[str, float]:
    """Microseconds of a step by group. The loss's own products count as products."""
    found: dict[str, float] = {}
    for name, us in kernels.items():
        group = next((group for group, what in GROUPS.items() if re.search(what, name.lower())), "elementwise")
        found[group] = found.get(group, 0.0) + us
    return found


def kernel_times(step: Any) -> dict[str, float]:
    """Microseconds per kernel in one step."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
        torch.cuda.synchronize()
    times: dict[str, float] = {}
    for event in profiled.key_averages():
        times[event.key] = times.get(event.key, 0.0) + float(event.self_device_time_total)
    return times


def losses(device: str, case: Case, precision: str) -> list[float]:
    """Losses of the first steps of a tiny model."""
    from spdf_dist.training.bench import build_engine, random_batch

    config = load(TINY, case, device, precision)
    groups = groups_for(config)
    engine, batch = build_engine(config, groups, case.execution), random_batch(config, groups)
    tokens = SEQUENCES * config.model.seq_length
    return [engine.step(batch, tokens, config.training.lr).loss for _ in range(LOSS_STEPS)]


CHECKS = (
    (Case("compressed", "balanced:64", 0.5), "bf16"),
    (DENSE, "fp32"),
    (Case("compressed", level=0.5), "fp32"),
    (DENSE, "bf16"),
    (Case("compressed", level=0.5), "bf16"),
)


def print_losses(device: str, count: int) -> None:
    """Print the losses of the first CHECKS on one device as one JSON line; runs in a separate process."""
    print(json.dumps([losses(device, case, precision) for case, precision in CHECKS[:count]]))


def check_losses(record: Record, smoke: bool) -> None:
    """Compare the losses of tiny models on the GPU with those of the torch back end on the CPU."""
    found = {}
    count = 1 if smoke else len(CHECKS)
    for device in ("cpu", "cuda"):
        environment = dict(os.environ)
        if device == "cpu":
            environment |= {"SPDF_KERNELS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
            environment |= {"PRETEND_CUDA": "", "TRITON_INTERPRET": "0"}
        answer = subprocess.run(
            [sys.executable, "-m", "gpu_lab", "losses", device, str(count)], capture_output=True, text=True,
            timeout=540 if smoke else 180,
            env=environment, cwd=ROOT,
        )  # fmt: skip
        if answer.returncode:
            raise RuntimeError(f"on the {device}: {answer.stderr.strip()[-300:]}")
        found[device] = json.loads(answer.stdout.strip().splitlines()[-1])
    for (case, precision), on_gpu, on_cpu in zip(CHECKS[:count], found["cuda"], found["cpu"], strict=True):
        difference = max(abs(a / b - 1) for a, b in zip(on_gpu, on_cpu, strict=True))
        fields: dict[str, Any] = {"execution": case.label, "precision": precision, "difference": difference}
        if not difference < MAX_DIFFERENCE[precision]:
            fields["error"] = f"losses {on_gpu} on the GPU, {on_cpu} on the CPU"
        record.say("losses", **fields)


RUN_CASES = (DENSE, Case("compressed", "balanced:64"))
RUN_WARM_UP, RUN_RATE = 40, 6e-4
"""Steps of the linear warm-up of the real run, and the learning rate after it."""


def text_ids() -> torch.Tensor:
    """The bytes of this repository's text files as token ids: real text that needs no download."""
    files = sorted(file for end in ("md", "py", "cpp", "h", "yaml") for file in ROOT.rglob(f"*.{end}"))
    text = b"".join(file.read_bytes() for file in files if not any(part.startswith(".") for part in file.parts))
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


def real_run(record: Record, model: tuple[str, ...], smoke: bool) -> None:
    """Train each case on the same batches for an equal share of the part's time; losses and tokens/s over the steps."""
    ids = text_ids()
    cases = SMOKE_CASES[:2] if smoke else RUN_CASES
    for index, case in enumerate(cases):
        if record.is_over(f"run {case.label}"):
            continue
        seconds = record.part_left() / (len(cases) - index)
        action = functools.partial(trained, record, model, case, ids, seconds, smoke)
        record.attempt("run", action, execution=case.label)


def trained(record: Record, model: tuple[str, ...], case: Case, ids: torch.Tensor, seconds: float, smoke: bool) -> None:
    """Train one case for some seconds; a line every 20 steps."""
    from spdf_dist.training.batches import MicroBatch
    from spdf_dist.training.bench import build_engine

    config = load(model, case, "cuda", "bf16")
    groups = groups_for(config)
    began = time.monotonic()
    engine = build_engine(config, groups, case.execution)
    length, generator = config.model.seq_length, torch.Generator().manual_seed(0)
    every, most = (1, 1) if smoke else (20, 10**6)
    losses: list[float] = []
    clock, counted = time.monotonic(), 0
    while len(losses) < most and time.monotonic() - began < seconds:
        starts = torch.randint(len(ids) - length - 1, (SEQUENCES, 1), generator=generator)
        window = ids[starts + torch.arange(length + 1)].remainder(config.model.vocab_size).to(groups.device)
        batch = MicroBatch(window[:, :-1].contiguous(), window[:, 1:].contiguous(), len(losses))
        rate = RUN_RATE * min(1.0, (len(losses) + 1) / RUN_WARM_UP)
        losses.append(one_step(engine, [batch], SEQUENCES * length, rate))
        if len(losses) % every == 0:
            now = time.monotonic()
            speed = (len(losses) - counted) * SEQUENCES * length / (now - clock)
            clock, counted = now, len(losses)
            mean = sum(losses[-every:]) / every
            record.say("run", execution=case.label, step=len(losses), loss=mean, tokens_per_s=speed)
    del engine
    gc.collect()
    if groups.device.type == "cuda":
        torch.cuda.empty_cache()
