"""Signals that ask a run to stop: the first is remembered and agreed on by the ranks, the second ends at once."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

from spdf_dist.config.errors import EXIT_STOPPED

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """While entered, remembers a first SIGTERM, SIGUSR1 or Ctrl-C in ``requested``."""

    def __init__(self) -> None:
        self.requested = False
        self._owner = os.getpid()
        self._before: dict[int, object] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked worker: its parent decides
            return
        if self.requested:
            os._exit(EXIT_STOPPED if number == signal.SIGINT else 128 + number)
        self.requested = True

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
