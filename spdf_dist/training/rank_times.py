"""A callback that compares the ranks: which one is the slowest, and by how much."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import torch
import torch.distributed as dist

from spdf_dist.config.errors import UserError
from spdf_dist.training.callbacks import Callback, RunInfo, StepMetrics

PHASES = ("data", "forward", "backward", "reduce", "update")
OWN_WORK = ("data", "forward")
"""Phases in which a rank does not wait for the other data ranks. The backward phase is not one of them, because ZeRO 2
reduces gradients within it."""
NOTICEABLE = 1.2
"""The slowest rank is reported in the output if its own work takes more than this factor times the median."""


class RankTimes(Callback):
    """Compares the mean times of the ranks every ``every`` steps, with one reduction.

    Every run of several ranks has this callback. The metrics are the minimum, median and maximum over the ranks of each
    phase, in milliseconds per step, and the rank whose own work (reading data and the forward pass) takes the longest,
    with its time divided by the median. In the other phases a rank waits for slower ones, so that they say little about
    the rank itself. Tensor ranks wait for each other in the forward pass too.
    """

    every_rank = True

    def __init__(self, run: RunInfo, every: int = 50) -> None:
        if not isinstance(every, int) or every < 1:
            raise UserError(f"callbacks.ranks.every: must be 1 or more steps, got {every}")
        self.run, self.every = run, every
        self.reset()

    def reset(self) -> None:
        """Start a new interval."""
        self.sums, self.steps = dict.fromkeys(PHASES, 0.0), 0

    def after_step(self, metrics: StepMetrics, phases_ms: Mapping[str, float]) -> None:
        for phase in PHASES:
            self.sums[phase] += phases_ms.get(phase, 0.0)
        self.steps += 1
        if metrics.step % self.every == 0:
            groups = self.run.groups
            table = torch.zeros(groups.world_size, len(PHASES), dtype=torch.float64, device=groups.device)
            table[groups.rank] = torch.tensor([self.sums[phase] / self.steps for phase in PHASES])
            if groups.world_size > 1:
                dist.all_reduce(table)
            self.reset()
            if groups.rank == 0:
                self.report(metrics.step, table.tolist())

    def report(self, step: int, table: list[list[float]]) -> None:
        """Log the comparison of the ranks' mean times, ``table[rank][phase]`` in milliseconds."""
        values: dict[str, float] = {}
        for name, column in zip(PHASES, zip(*table, strict=True), strict=True):
            for what, of in (("min", min), ("median", statistics.median), ("max", max)):
                values[f"ranks/{name}_ms/{what}"] = of(column)
        own = [sum(row[PHASES.index(phase)] for phase in OWN_WORK) for row in table]
        slowest, middle = max(range(len(own)), key=own.__getitem__), statistics.median(own)
        ratio = own[slowest] / middle if middle else 1.0
        values |= {"ranks/slowest": slowest, "ranks/slowest_over_median": ratio}
        self.run.log(step, values)
        if ratio > NOTICEABLE:
            self.run.say(
                f"step {step}: rank {slowest} is the slowest: {own[slowest]:.1f} ms per step for data and forward "
                f"pass, {ratio:.2f} times the median"
            )
