"""Handling of the signals that stop a command: temporary handlers, stop requests and immediate exits."""

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

SCHEDULER_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals by which schedulers, time limits and Ctrl-C stop a command."""

STOP_SIGNALS = (*SCHEDULER_SIGNALS, signal.SIGHUP)
"""Signals that stop a command: also that of a terminal that is closed, unless it is ignored, as under nohup."""

START_UP_SECONDS = 10.0
"""How long a start-up goes on after a stop signal. Native code may wait for a rank that has already ended."""

Handler = Callable[[int, FrameType | None], object] | int


@contextlib.contextmanager
def handled(numbers: Iterable[int], handler: Handler) -> Iterator[None]:
    """Install ``handler`` for the signals during the block, then restore the earlier handlers. Main thread only.

    An ignored SIGHUP stays ignored.
    """
    kept = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
    before = {number: signal.signal(number, handler) for number in numbers if number not in kept}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class ReceivedSignals:
    """Collects signals in ``got``, in order, instead of letting them end the process. A context manager."""

    def __init__(self, numbers: Iterable[int] = SCHEDULER_SIGNALS) -> None:
        self.numbers = tuple(numbers)
        self.got: list[int] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> ReceivedSignals:
        self._stack.enter_context(handled(self.numbers, lambda number, frame: self.got.append(number)))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def pause(self, seconds: float) -> None:
        """Wait until a signal has been received or ``seconds`` have passed."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.got:
            time.sleep(0.1)


class Watch:
    """Reacts to stop signals in a thread, because Python runs no handlers while the main thread is in native code.

    Rank 0 acknowledges the first signal on standard error. A second one ends the process at once. Before ``begun`` is
    set there is nothing to save, and the first signal ends the process after START_UP_SECONDS. A context manager for
    the main thread only.
    """

    ACKNOWLEDGED = b"stopping at the end of this step, then saving; a second signal ends at once\n"
    NOTHING_SAVED = b"stopped during start-up; nothing was written, start it again\n"

    def __init__(self) -> None:
        self.begun = threading.Event()

    def __enter__(self) -> Watch:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=self._forget)
        threading.Thread(target=self._answer, args=(self._read,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.begun.set()
        signal.set_wakeup_fd(self._before)
        os.close(self._write)  # the thread reads end-of-file and ends

    def _forget(self) -> None:
        """In a forked child: detach it from the parent's pipe, because its signals are not the parent's."""
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
                self._say(self.ACKNOWLEDGED)
                if not self.begun.is_set():
                    threading.Thread(target=self._end_start_up, daemon=True).start()
        os.close(pipe)

    def _end_start_up(self) -> None:
        if not self.begun.wait(START_UP_SECONDS):
            self._say(self.NOTHING_SAVED)
            os._exit(EXIT_STOPPED)

    def _say(self, line: bytes) -> None:
        if is_rank_zero():
            with contextlib.suppress(OSError):
                os.write(2, line)


def second_code(number: int) -> int:
    """The exit code of a process that a second stop signal ends."""
    return EXIT_STOPPED if number == signal.SIGINT else 128 + number


class StopRequest:
    """Sets ``requested`` at the first stop signal; a second one ends the process at once. A context manager.

    A start-up that does not reach ``begin`` within START_UP_SECONDS of the first signal ends with EXIT_STOPPED.
    """

    def __init__(self) -> None:
        self.requested = False
        self._watch = Watch()
        self._owner = os.getpid()
        self._stack = contextlib.ExitStack()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # in a forked worker, the parent decides
            return
        if self.requested:
            os._exit(second_code(number))
        self.requested = True

    def __enter__(self) -> StopRequest:
        self._stack.enter_context(handled(STOP_SIGNALS, self._handle))
        self._stack.enter_context(self._watch)
        return self

    def begin(self) -> None:
        """Say that the owner looks at ``requested`` from now on."""
        self._watch.begun.set()

    def __exit__(self, *error: object) -> None:
        self._stack.close()


@contextlib.contextmanager
def stop_on_signal() -> Iterator[None]:
    """Raise ``Stopped`` in the block at the first stop signal; a second one ends the process at once.

    It is for commands that have no state to save.
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
