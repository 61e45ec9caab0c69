"""Prefetched batches are equal, and save time where reading is slow."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from spdf_dist.config.errors import UserError
from spdf_dist.training.batches import GlobalBatch, MicroBatch
from spdf_dist.training.prefetch import Prefetch


class Slow:
    """Four steps with slow batches. The third batch cannot be read."""

    total_steps = 4
    validation_passes = 0

    def batch(self, step: int) -> GlobalBatch:
        time.sleep(0.1)
        if step == 3:
            raise UserError("a shard is damaged")
        return GlobalBatch([], step, step)

    def consumed_tokens(self, step: int) -> int:
        return step

    def validation(self) -> Iterator[MicroBatch]:
        return iter(())


def test_batches_come_in_order_and_errors_at_their_step() -> None:
    prefetch = Prefetch(Slow())
    assert [prefetch.batch(step).target_tokens for step in (1, 2)] == [1, 2]
    with pytest.raises(UserError, match="a shard is damaged"):
        prefetch.batch(3)
    assert prefetch.batch(4).target_tokens == 4
    prefetch.close()


def test_a_slow_disk_is_hidden_behind_the_step() -> None:
    prefetch = Prefetch(Slow())
    prefetch.batch(1)
    time.sleep(0.15)  # the step
    begin = time.perf_counter()
    prefetch.batch(2)
    assert time.perf_counter() - begin < 0.05
    prefetch.close()
