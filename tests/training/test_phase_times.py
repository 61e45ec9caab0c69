"""Times of phases, on the CPU and with CUDA events."""

from __future__ import annotations

import time

import pytest
import torch

from spdf_dist.training.phase_times import PhaseTimes


def test_on_a_cpu_times_are_those_of_the_step_and_backward_is_without_the_reduction() -> None:
    times = PhaseTimes(torch.device("cpu"))
    reduce = times.timed("reduce", lambda: time.sleep(0.02))
    for _ in range(2):
        times.begin_step()
        with times.phase("forward"):
            time.sleep(0.01)
        for _ in range(2):
            with times.phase("backward"):
                reduce()
    found = times.ms()
    assert found["forward"] >= 10 and found["reduce"] >= 40
    assert 0 <= found["backward"] < 20


def test_on_cuda_events_are_read_one_step_later(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = clock[0]

        def elapsed_time(self, other: Event) -> float:
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    times = PhaseTimes(torch.device("cuda"))
    for step in (1, 2, 3):
        times.begin_step()
        with times.phase("forward"):
            clock[0] += step
        found = times.ms()
        assert found == ({} if step == 1 else {"forward": step - 1})
