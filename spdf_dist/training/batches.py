"""Pre-training batches: packed sequences in an order that depends on (seed, global sample index) alone.

Shapes: B sequences, T target tokens of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from spdf_dist.accounting.flops import training_flops
from spdf_dist.base.random_streams import derive_seed
from spdf_dist.config.budget import tokens_per_step, total_steps
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.data.loader import Mixture
from spdf_dist.parallel.groups import Groups
from spdf_dist.training.engine import MicroBatch
from spdf_dist.training.opening import TimedMicroBatches, announce
from spdf_dist.training.schedule import schedule_of


@dataclass(frozen=True)
class GlobalBatch:
    """This rank's part of one optimizer step, and the step's totals over all ranks."""

    micro_batches: list[MicroBatch]
    target_tokens: int
    model_flops: int


class Source(Protocol):
    """What the training loop trains on; pre-training and fine-tuning each have one."""

    total_steps: int

    def batch(self, step: int) -> GlobalBatch:
        """The batch of optimizer step ``step``, counted from 1."""

    def consumed_tokens(self, step: int) -> int:
        """Target tokens of all steps up to and with ``step``."""

    def lr(self, step: int) -> float:
        """The learning rate of a step."""

    def validates_after(self, step: int) -> bool:
        """Whether the validation loss is due."""

    def validation(self) -> Iterator[MicroBatch]:
        """This rank's part of the validation set, in forward passes."""


class PretrainBatches:
    """A ``Source`` over packed sequences."""

    def __init__(
        self,
        config: PretrainConfig,
        train: Mixture,
        validation: Mixture | None,
        groups: Groups,
        first_sample: int = 0,
    ) -> None:
        """``first_sample`` is the global sample index that step 1 reads first."""
        self.config = config
        self.first_sample = first_sample
        self.train = train
        self.validation_data = validation
        self.groups = groups
        self.total_steps = total_steps(config)
        self._opened = False
        self.schedule = schedule_of(config.training, self.consumed_tokens(self.total_steps))
        self._flops = training_flops(config.model, config.sparsity) * config.training.global_batch_size

    def _micro_batches(self, data: Mixture, start: int, stop: int) -> Iterator[MicroBatch]:
        """Global samples start...stop-1 dealt to the data ranks a micro-batch at a time."""
        size = self.config.training.micro_batch_size
        for begin in range(start + self.groups.data_rank * size, stop, size * self.groups.data_size):
            samples = np.arange(begin, min(begin + size, stop))
            ids_BT1 = torch.from_numpy(data.read(samples)).to(self.groups.device)
            # A tensor rank draws what its neighbours draw: the seed knows samples, not ranks.
            seed = derive_seed("dropout", self.config.seed, str(begin)) >> 1
            yield MicroBatch(ids_BT1[:, :-1].contiguous(), ids_BT1[:, 1:].contiguous(), seed)

    def batch(self, step: int) -> GlobalBatch:
        size = self.config.training.global_batch_size
        start = self.first_sample + (step - 1) * size
        if not self._opened:
            announce(self.config, self.train, self.groups.device, self.groups.data_size * self.groups.tensor_size)
        found = list(self._micro_batches(self.train, start, start + size))
        micro_batches = TimedMicroBatches(found, step, self.total_steps, first=not self._opened)
        self._opened = True
        return GlobalBatch(micro_batches, tokens_per_step(self.config), self._flops)

    def consumed_tokens(self, step: int) -> int:
        return step * tokens_per_step(self.config)

    def lr(self, step: int) -> float:
        return self.schedule.lr(self.consumed_tokens(step))

    def validates_after(self, step: int) -> bool:
        due = step % self.config.validation.interval == 0 or step == self.total_steps
        return self.validation_data is not None and due

    def validation(self) -> Iterator[MicroBatch]:
        """The same samples each time: ``validation.batches`` global batches, at most once through the set."""
        assert self.validation_data is not None
        wanted = self.config.validation.batches * self.config.training.global_batch_size
        return self._micro_batches(self.validation_data, 0, min(wanted, self.validation_data.num_sequences))
