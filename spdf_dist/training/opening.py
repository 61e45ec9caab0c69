"""Messages of a run before its first step: its size, time, data and memory on this machine.

They warn at once if the machine cannot train the model in reasonable time or memory.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from spdf_dist.accounting.plan import bytes_text, plan
from spdf_dist.base.cpu import cores
from spdf_dist.base.numbers import counted, duration
from spdf_dist.base.rank_variables import discover, is_rank_zero
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.data.loader import Mixture, open_mixture
from spdf_dist.parallel.groups import choose_device
from spdf_dist.training.batches import validation_sequences
from spdf_dist.training.engine import dtype_of

MEASURED_SECONDS = 0.1
PROBE_ROWS, PROBE_SIDE = 256, 1024
"""Rows of the input, and rows and columns of the weight, of the measured matrix product."""
TOO_LONG_SECONDS = 7 * 86400
"""A run that takes longer prints its size and time before the model is built."""
SLOW_PRECISION = 1.5
"""A precision that is slower than fp32 by more than this factor is warned about."""


def product_rate(precision: str, device: torch.device) -> float:
    """FLOP/s of one large matrix product on this rank, measured for about ``MEASURED_SECONDS``."""
    dtype = dtype_of(precision)
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

        ``validation`` is the validation data; None: data of the size that the config sets.
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
            f"{summary['parameters']:,} parameters{kept}; {counted(summary['steps'], 'step')} of "
            f"{summary['tokens_per_step']:,} tokens; {summary['flops_per_step']:.3g} FLOPs per step, "
            f"{summary['total_flops']:.3g} in all"
        )

    def time_line(self) -> str:
        """A lower bound of the time: matrix products only."""
        return (
            f"at least {duration(self.step_seconds)} per step and {duration(self.seconds)} in all: "
            f"matrix products run at {self.rate / 1e9:,.0f} GFLOP/s on this "
            f"{'GPU' if self.device.type == 'cuda' else 'CPU'}, {counted(self.ranks, 'rank')}"
        )

    def validation_lines(self) -> list[str]:
        """A line on the cost of validation, with a lower bound of its time; none without validation."""
        cost, what = self.summary["validation"], "pair" if self.kind == "finetune" else "sequence"
        if not cost["times"]:
            return []
        times = "once" if cost["times"] == 1 else f"at most {cost['times']:,} times"
        return [
            f"validates on {counted(cost['sequences'], what)} {times}: {cost['flops']:.3g} FLOPs and at least "
            f"{duration(self.validation_seconds)} per validation"
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
                f"{bytes_text(free)} free: it is likely to be killed; use a smaller model or more ranks (spdf estimate)"
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


def data_lines(config: PretrainConfig, train: Mixture) -> list[str]:
    """Lines on the tokens that the run reads and the data holds, and on data sets that it reads more than once."""
    asked = config.training.train_tokens
    have = train.num_sequences * train.seq_length
    lines = [f"trains on {asked:,} tokens; the training data hold {have:,} tokens"]
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
        for line in found.early():
            print(f"{found.kind}: {line}", file=sys.stderr, flush=True)


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
