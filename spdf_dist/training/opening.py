"""Messages of a run before its first step: its size, time, data and memory on this machine.

They warn at once if the machine cannot train the model in reasonable time or memory.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from spdf_dist.accounting.plan import bytes_text, plan
from spdf_dist.base.cpu import cores
from spdf_dist.base.rank_variables import discover, is_rank_zero
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.data.loader import Mixture, open_mixture
from spdf_dist.parallel.groups import choose_device

MEASURED_SECONDS = 0.1
PROBE_ROWS, PROBE_SIDE = 256, 1024
"""Rows of the input, and rows and columns of the weight, of the measured matrix product."""
TOO_LONG_SECONDS = 7 * 86400
"""A run that takes longer prints its size and time before the model is built."""
SLOW_PRECISION = 1.5
"""A precision that is slower than fp32 by more than this factor is warned about."""
WITHIN_STEP_SECONDS = 15.0
"""Time between two progress lines within one long step."""

T = TypeVar("T")


def product_rate(precision: str, device: torch.device) -> float:
    """FLOP/s of one large matrix product on this rank, measured for about ``MEASURED_SECONDS``."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x = torch.ones(PROBE_ROWS, PROBE_SIDE, dtype=dtype, device=device)
    weight = torch.ones(PROBE_SIDE, PROBE_SIDE, dtype=dtype, device=device)
    x[:8] @ weight
    synchronize(device)
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < MEASURED_SECONDS:
        started = time.perf_counter()
        x @ weight
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * PROBE_ROWS * PROBE_SIDE**2 / best


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work; no-op on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def available_memory(device: torch.device) -> int | None:
    """Free bytes on this GPU or, for the CPU, on this machine; None if that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        limit = Path("/sys/fs/cgroup/memory.max")
        if limit.is_file() and (text := limit.read_text().strip()).isdigit():
            free = min(free, int(text))
        return free
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def duration(seconds: float) -> str:
    """Seconds as text, in a suitable unit."""
    for unit, length in (("years", 365 * 86400), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


class Opening:
    """Facts about a run before it starts, on the device that it uses."""

    def __init__(
        self, kind: str, summary: Mapping[str, Any], precision: str, device: torch.device, world_size: int
    ) -> None:
        """``kind`` is `pretrain` or `finetune`; ``summary`` is the result of ``plan`` or ``finetuning_plan``."""
        self.kind, self.summary, self.precision, self.device, self.ranks = kind, summary, precision, device, world_size
        self.rate = product_rate(precision, device)
        self.slower = product_rate("fp32", device) / self.rate if precision != "fp32" else 1.0
        self.step_seconds = summary["executed_flops_per_step"] / (self.rate * self.ranks)
        self.validation_seconds = summary["validation"]["executed_flops"] / (self.rate * self.ranks)
        self.seconds = self.step_seconds * summary["steps"] + self.validation_seconds * summary["validation"]["times"]

    @classmethod
    def of_pretraining(
        cls,
        config: PretrainConfig,
        device: torch.device,
        world_size: int | None = None,
        validation: Mixture | None = None,
    ) -> Opening:
        """The summary of a pre-training run; by default with the ranks of the launcher or the config.

        ``validation`` is the validation data; None: data of the size that the config asks for.
        """
        ranks, parallel = discover(), config.parallel
        count = world_size or (ranks.world_size if ranks else parallel.tensor * (parallel.data or 1))
        held_out = None if validation is None else validation_sequences(config, validation)
        return cls("pretrain", plan(config, count, held_out), config.training.precision, device, count)

    def size_line(self) -> str:
        """Parameters, steps and FLOPs."""
        summary = self.summary
        kept = f" ({summary['nonzeros']:,} kept)" if summary["sparsity"] > 0 else ""
        return (
            f"{summary['parameters']:,} parameters{kept}; {summary['steps']:,} steps of {summary['tokens_per_step']:,} "
            f"tokens; {summary['flops_per_step']:.3g} FLOPs per step, {summary['total_flops']:.3g} in all"
        )

    def time_line(self) -> str:
        """A lower bound of the time: matrix products only."""
        where = f"{self.ranks} rank{'s' if self.ranks > 1 else ''}"
        return (
            f"at least {duration(self.step_seconds)} per step and {duration(self.seconds)} in all: matrix products run "
            f"at {self.rate / 1e9:,.0f} GFLOP/s on this {'GPU' if self.device.type == 'cuda' else 'CPU'}, {where}"
        )

    def validation_lines(self) -> list[str]:
        """A line on the cost of validation, with a lower bound of its time; none without validation."""
        cost, what = self.summary["validation"], "pairs" if self.kind == "finetune" else "sequences"
        if not cost["times"]:
            return []
        return [
            f"validates {cost['sequences']:,} {what} up to {cost['times']:,} times: {cost['flops']:.3g} FLOPs and "
            f"at least {duration(self.validation_seconds)} each time"
        ]

    def warnings(self) -> list[str]:
        """Warnings about memory and slow precision on this machine."""
        found = []
        need, free = self.summary["memory_bytes"]["total"], available_memory(self.device)
        on_one = self.ranks if self.device.type == "cpu" else 1
        if free is not None and need * on_one > free:
            whose = "this GPU" if self.device.type == "cuda" else "this machine"
            found.append(
                f"WARNING: the run needs about {bytes_text(need * on_one)} of memory and {whose} has "
                f"{bytes_text(free)} free: it is likely to be killed; a smaller model or more ranks (spdf estimate) fit"
            )
        if self.slower > SLOW_PRECISION:
            found.append(
                f"WARNING: {self.precision} is emulated on this machine and {self.slower:.1f} times "
                "slower than fp32: set training.precision=fp32"
            )
        return found

    def early(self) -> list[str]:
        """Lines to print before the model is built; none unless there are warnings or the run is very long."""
        found = self.warnings()
        return [self.size_line(), self.time_line(), *found] if found or self.seconds > TOO_LONG_SECONDS else []

    def lines(self, about_data: Sequence[str]) -> list[str]:
        """Lines to print before the first step: size, and those of ``foreseen``."""
        return [self.size_line(), *self.foreseen(about_data)]

    def foreseen(self, about_data: Sequence[str]) -> list[str]:
        """Lines on this machine: time, the lines about the data, validation, and warnings."""
        return [self.time_line(), *about_data, *self.validation_lines(), *self.warnings()]


def validation_sequences(config: PretrainConfig, validation: Mixture) -> int:
    """Sequences per validation: ``validation.batches`` global batches, or the whole smaller set."""
    return min(config.validation.batches * config.training.global_batch_size, validation.num_sequences)


def data_lines(config: PretrainConfig, train: Mixture) -> list[str]:
    """Lines on the tokens that the run reads and the data holds, and on data sets that it reads more than once."""
    asked = config.training.train_tokens
    have = train.num_sequences * train.seq_length
    lines = [f"reads {asked:,} tokens of data that hold {have:,}"]
    whole = sum(entry.weight for entry in config.data.train)
    for dataset, entry in zip(train.datasets, config.data.train, strict=True):
        passes = asked * entry.weight / whole / (dataset.num_sequences * train.seq_length)
        if passes > 1:
            lines.append(f"repeats {dataset.path}: {passes:.3g} passes over its sequences")
    return lines


def warn_early(opening: Callable[[], Opening]) -> None:
    """Print ``Opening.early`` on rank 0, before the model is built."""
    if is_rank_zero():
        found = opening()
        say(found.kind, found.early())


def say(kind: str, lines: Sequence[str]) -> None:
    """Print lines about a run of a kind to stderr, on rank 0 only."""
    if is_rank_zero():
        for line in lines:
            print(f"{kind}: {line}", file=sys.stderr, flush=True)


class Announcer:
    """Announces a run of ``steps`` steps when its first batch is read, and times long steps.

    ``lines`` returns the lines to print; it is called on rank 0 only.
    """

    def __init__(self, kind: str, steps: int, lines: Callable[[], list[str]]) -> None:
        self.kind, self.steps, self.lines = kind, steps, lines
        self.first = True

    def announce(self) -> None:
        """Print the lines, if this is the first batch of this process."""
        if self.first and is_rank_zero():
            say(self.kind, self.lines())

    def timed(self, batches: list[T], step: int) -> TimedMicroBatches[T]:
        """The micro-batches of a step, which report its progress."""
        first, self.first = self.first, False
        return TimedMicroBatches(batches, step, self.steps, first=first, kind=self.kind)


class TimedMicroBatches(list[T]):
    """The micro-batches of a step. Iterating prints the progress of a long step and, early in the run, its total time.

    ``step`` is the number of the step, from 1. ``steps`` counts all steps of the run. ``first`` marks the first step of
    this process.
    """

    def __init__(self, batches: list[T], step: int, steps: int, *, first: bool, kind: str = "pretrain") -> None:
        super().__init__(batches)
        self.step, self.steps, self.first, self.kind = step, steps, first, kind

    def __iter__(self) -> Iterator[T]:
        begin = last = time.monotonic()
        for index in range(len(self)):
            started = time.monotonic()
            yield self[index]
            now = time.monotonic()
            if self.first and index == min(1, len(self) - 1):  # the first micro-batch includes the warm-up
                one = now - started
                step_seconds = one * len(self)
                rest = step_seconds * (self.steps - self.step + 1)
                text = f"a micro-batch took {duration(one)}: about {duration(step_seconds)} per step"
                say(self.kind, [f"{text}, {duration(rest)} in all"])
            elif now - last > WITHIN_STEP_SECONDS and index + 1 < len(self):
                last = now
                left = (now - begin) / (index + 1) * (len(self) - index - 1)
                text = f"step {self.step}: micro-batch {index + 1} of {len(self)}"
                say(self.kind, [f"{text}, {duration(left)} left in this step"])


def foresee(config: PretrainConfig, world_size: int) -> list[str]:
    """The lines on time and data, and the warnings, that the run would print on this machine."""
    use_all_cores()
    model, train, validation = config.model, None, None
    if config.data.train:
        train = open_mixture(config.data.train, model.seq_length, config.seed, model.vocab_size)
    if config.data.validation:
        validation = open_mixture(config.data.validation, model.seq_length, config.seed, model.vocab_size)
    opening = Opening.of_pretraining(config, choose_device(config.device, 0), world_size, validation)
    return opening.foreseen(data_lines(config, train) if train is not None else [])


def use_all_cores() -> None:
    """Let a process that measures use every core, as the ranks of a run do together."""
    os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
