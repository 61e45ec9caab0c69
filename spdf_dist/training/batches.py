"""Pre-training batches: packed sequences in an order that depends only on (seed, global sample index).

Shapes: B sequences, T target tokens of a sequence.
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


@dataclass(frozen=True)
class MicroBatch:
    """The inputs of one forward pass on this rank."""

    tokens_BT: Tensor
    """Token ids, int64."""
    labels_BT: Tensor
    """The id to predict at each position, int64. Positions with ``IGNORED`` do not count in the loss."""
    dropout_seed: int
    """Depends only on the samples, so that the same activations are dropped after a restart or on other ranks."""


@dataclass(frozen=True)
class GlobalBatch:
    """This rank's part of one optimizer step, and the step's totals over all ranks."""

    micro_batches: list[MicroBatch]
    target_tokens: int
    """Of the whole global batch."""
    model_flops: int
    """Of the whole global batch, forward and backward pass."""


class Data(Protocol):
    """The training and validation batches of a run. Pre-training and fine-tuning each implement it."""

    total_steps: int
    """Optimizer steps of the whole run."""
    validation_passes: int
    """Micro-batches per validation on the rank that has the most; 0 without a validation set. Every rank has the same
    number here, because the ranks validate together."""

    def batch(self, step: int) -> GlobalBatch:
        """The batch of optimizer step ``step``, counted from 1. It may be called from another thread."""

    def consumed_tokens(self, step: int) -> int:
        """Target tokens of all steps up to and including ``step``."""

    def validation(self) -> Iterator[MicroBatch]:
        """This rank's micro-batches of the validation set."""


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

        They differ from 0, and may be negative, after ``init_from``, a rewind or a change of the batch size.
        """
        self.config = config
        self.first_sample, self.first_token = first_sample, first_token
        self.train = train
        self.validation_data = validation
        self.groups = groups
        self.total_steps = total_steps(config)
        if first_token:
            self.total_steps = to_steps(config, config.training.train_tokens - first_token)
        self._flops = training_flops(config.model, config.sparsity) * config.training.global_batch_size
        self._held_out = 0 if validation is None else validation_sequences(config, validation)
        self.validation_passes = -(-self._held_out // (config.training.micro_batch_size * groups.data_size))

    def _micro_batches(self, data: Mixture, start: int, stop: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches of the global samples start...stop-1, which the data ranks take in turn."""
        size = self.config.training.micro_batch_size
        for begin in range(start + self.groups.data_rank * size, stop, size * self.groups.data_size):
            samples = np.arange(begin, min(begin + size, stop))
            ids_BT1 = torch.from_numpy(data.read(samples)).to(self.groups.device)
            # The seed depends on the samples and not on the rank, so that tensor ranks drop the same activations.
            seed = derive_seed("dropout", self.config.seed, str(begin)) >> 1
            yield MicroBatch(ids_BT1[:, :-1].contiguous(), ids_BT1[:, 1:].contiguous(), seed)

    def batch(self, step: int) -> GlobalBatch:
        size = self.config.training.global_batch_size
        start = self.first_sample + (step - 1) * size
        micro_batches = list(self._micro_batches(self.train, start, start + size))
        return GlobalBatch(micro_batches, tokens_per_step(self.config), self._flops)

    def consumed_tokens(self, step: int) -> int:
        return self.first_token + step * tokens_per_step(self.config)

    def validation(self) -> Iterator[MicroBatch]:
        """This rank's micro-batches of the first ``validation.batches`` global batches, or of the whole smaller set."""
        assert self.validation_data is not None
        return self._micro_batches(self.validation_data, 0, self._held_out)


def validation_sequences(config: PretrainConfig, validation: Mixture) -> int:
    """Sequences per validation: ``validation.batches`` global batches, or the whole smaller set."""
    return min(config.validation.batches * config.training.global_batch_size, validation.num_sequences)
