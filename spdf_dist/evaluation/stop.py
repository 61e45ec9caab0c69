"""A signal ends a command that has nothing to save: nothing half-written, exit code 75."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from spdf_dist.config.errors import EXIT_STOPPED, Stopped

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@contextmanager
def stop_on_signal() -> Iterator[None]:
    """Raise ``Stopped`` in the block at the first SIGTERM, SIGUSR1 or Ctrl-C; a second ends the process at once."""
    seen = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        if seen:
            os._exit(EXIT_STOPPED)
        seen = True
        raise Stopped(f"stopped by {signal.Signals(number).name}; nothing was written, start it again")

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
