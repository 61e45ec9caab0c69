"""Signals that end or stop a command: handlers that are put back, and what commands do when one comes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

from spdf_dist.base.rank_variables import is_rank_zero
from spdf_dist.config.errors import EXIT_STOPPED, Stopped

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What a scheduler, a time limit and Ctrl-C send to end a command."""

Handler = Callable[[int, FrameType | None], object] | int


@contextlib.contextmanager
def handled(numbers: Iterable[int], handler: Handler) -> Iterator[None]:
    """Handle the signals in the block with ``handler``, and as before after it. Main thread only."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class ReceivedSignals:
    """Collects signals, which end nothing: ``got`` lists them as they come. ``with received: ...``"""

    def __init__(self, numbers: Iterable[int] = STOP_SIGNALS) -> None:
        self.numbers = tuple(numbers)
        self.got: list[int] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> ReceivedSignals:
        self._stack.enter_context(handled(self.numbers, lambda number, frame: self.got.append(number)))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def pause(self, seconds: float, poll: float = 0.1) -> None:
        """Wait until a signal has come, or ``seconds`` have passed."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.got:
            time.sleep(poll)


class Watch:
    """Answers stop signals from a thread while the main thread is in native code, where no handler of Python's runs.

    The first is acknowledged on standard error by rank 0, a second one ends the process at once. Main thread only.
    """

    ACKNOWLEDGED = b"stopping at the end of this step, then saving; a second signal ends at once\n"

    def __enter__(self) -> Watch:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=self._forget)
        threading.Thread(target=self._answer, args=(self._read,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        signal.set_wakeup_fd(self._before)
        os.close(self._write)  # the thread reads the end and goes

    def _forget(self) -> None:
        """In a forked child: its signals are not this process's."""
        with contextlib.suppress(ValueError, OSError):
            if signal.set_wakeup_fd(-1) != self._write:
                return
            os.close(self._write)

    def _answer(self, pipe: int) -> None:
        heard = 0
        while content := os.read(pipe, 64):
            for number in content:
                if number not in STOP_SIGNALS:
                    continue
                heard += 1
                if heard > 1:
                    os._exit(second_code(number))
                if is_rank_zero():
                    with contextlib.suppress(OSError):
                        os.write(2, self.ACKNOWLEDGED)
        os.close(pipe)


def second_code(number: int) -> int:
    """The exit code of a process that a second signal ends."""
    return EXIT_STOPPED if number == signal.SIGINT else 128 + number


class StopRequest:
    """Remembers a first stop signal in ``requested``; a second one ends the process at once. ``with stop: ...``"""

    def __init__(self) -> None:
        self.requested = False
        self._owner = os.getpid()
        self._stack = contextlib.ExitStack()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked worker: its parent decides
            return
        if self.requested:
            os._exit(second_code(number))
        self.requested = True

    def __enter__(self) -> StopRequest:
        self._stack.enter_context(handled(STOP_SIGNALS, self._handle))
        self._stack.enter_context(Watch())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


@contextlib.contextmanager
def stop_on_signal() -> Iterator[None]:
    """Raise ``Stopped`` in the block at the first stop signal; a second one ends the process at once.

    For commands that have nothing to save.
    """
    seen = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        if seen:
            os._exit(EXIT_STOPPED)
        seen = True
        raise Stopped(f"stopped by {signal.Signals(number).name}; nothing was written, start it again")

    with handled(STOP_SIGNALS, handle):
        yield
