"""Pre-training batches: packed sequences in an order that depends on (seed, global sample index) alone.

Shapes: B sequences, T target tokens of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from spdf_dist.accounting.flops import training_flops
from spdf_dist.base.random_streams import derive_seed
from spdf_dist.config.budget import to_steps, tokens_per_step, total_steps
from spdf_dist.config.schema import PretrainConfig
from spdf_dist.data.loader import Mixture
from spdf_dist.parallel.groups import Groups
from spdf_dist.training.opening import TimedMicroBatches, announce


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass on this rank."""

    tokens_BT: Tensor
    """Ids, int64."""
    labels_BT: Tensor
    """Id to predict at each place, int64; ``IGNORED`` does not count."""
    dropout_seed: int
    """Depends on the samples alone, so that a resumed or re-divided run drops the same activations."""


@dataclass(frozen=True)
class GlobalBatch:
    """This rank's part of one optimizer step, and the step's totals over all ranks."""

    micro_batches: list[MicroBatch]
    target_tokens: int
    model_flops: int


class Data(Protocol):
    """What a run trains on and validates with; pre-training and fine-tuning each have one."""

    total_steps: int
    """Optimizer steps of the whole run."""
    validation_passes: int
    """Micro-batches of one validation on this rank; 0 where there is no validation set."""

    def batch(self, step: int) -> GlobalBatch:
        """The batch of optimizer step ``step``, counted from 1. Another thread may call it."""

    def consumed_tokens(self, step: int) -> int:
        """Target tokens of all steps up to and with ``step``."""

    def validation(self) -> Iterator[MicroBatch]:
        """This rank's part of the validation set, in forward passes."""


class PretrainBatches:
    """``Data`` over packed sequences."""

    def __init__(
        self,
        config: PretrainConfig,
        train: Mixture,
        validation: Mixture | None,
        groups: Groups,
        first_sample: int = 0,
        first_token: int = 0,
    ) -> None:
        """``first_sample`` and ``first_token`` are the global sample index and the consumed tokens before step 1.

        They are not 0, and may be negative, in a run that started elsewhere or changed its batch size.
        """
        self.config = config
        self.first_sample, self.first_token = first_sample, first_token
        self.train = train
        self.validation_data = validation
        self.groups = groups
        self.total_steps = total_steps(config)
        self._opened = False
        if first_token:
            self.total_steps = to_steps(config, config.training.train_tokens - first_token)
        self._flops = training_flops(config.model, config.sparsity) * config.training.global_batch_size
        wanted = config.validation.batches * config.training.global_batch_size
        self._held_out = 0 if validation is None else min(wanted, validation.num_sequences)
        size = config.training.micro_batch_size
        self.validation_passes = len(range(groups.data_rank * size, self._held_out, size * groups.data_size))

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
        return self.first_token + step * tokens_per_step(self.config)

    def validation(self) -> Iterator[MicroBatch]:
        """The same samples each time: ``validation.batches`` global batches, at most once through the set."""
        assert self.validation_data is not None
        return self._micro_batches(self.validation_data, 0, self._held_out)
