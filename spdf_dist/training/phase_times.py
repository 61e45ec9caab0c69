"""Times of the phases of a step: forward, backward, reduction of gradients, update."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class PhaseTimes:
    """Measures blocks of a step by name. Times of equal names are added.

    A CUDA device runs asynchronously. There each block records two events in the current stream, and their time is read
    in the next step, when the device has passed them. Therefore the measurement never waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, Any, Any]] = []
        self._events_before: list[tuple[str, Any, Any]] = []

    def begin_step(self) -> None:
        """Start a new step."""
        self._seconds = {}
        self._events_before, self._events = self._events, []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to the phase ``name``."""
        if self.on_cuda:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
        else:
            started = time.perf_counter()
            yield
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started

    def timed(self, name: str, function: Callable[..., T]) -> Callable[..., T]:
        """``function`` with its time added to the phase ``name``."""

        def call(*arguments: Any, **more: Any) -> T:
            with self.phase(name):
                return function(*arguments, **more)

        return call

    def ms(self) -> dict[str, float]:
        """Milliseconds by phase: on a CPU of this step, on CUDA of the step before (empty in the first step).

        The reduction of gradients runs within the backward phase; its time (``reduce``) is subtracted there. On CUDA,
        the device must have passed the events of the step before; the loss that each step reads ensures that.
        """
        found = {name: 1000 * seconds for name, seconds in self._seconds.items()}
        for name, begin, end in self._events_before:
            found[name] = found.get(name, 0.0) + begin.elapsed_time(end)
        if "reduce" in found:
            found["backward"] -= found["reduce"]
        return found
