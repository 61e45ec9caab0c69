"""Handling of the signals that stop a command: temporary handlers, stop requests and immediate exits."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FrameType

from spdf_dist.base import signal_guard
from spdf_dist.base.rank_variables import is_rank_zero
from spdf_dist.config.errors import EXIT_STOPPED, Stopped

SCHEDULER_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals by which schedulers, time limits and Ctrl-C stop a command."""

STOP_SIGNALS = (*SCHEDULER_SIGNALS, signal.SIGHUP)
"""Signals that stop a command: also that of a terminal that is closed, unless it is ignored, as under nohup."""

START_UP_SECONDS = 9.0
"""How long a start-up continues after a stop signal. Native code may wait for a rank that has already ended."""
GUARD_SECONDS = 0.5
"""How much later the guard ends such a start-up, if native code holds the interpreter lock."""

NOTHING_SAVED = "stopped during start-up; nothing was written, start it again"

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
        self._stack.enter_context(unguarded())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def pause(self, seconds: float) -> None:
        """Wait until a signal has been received or ``seconds`` have passed."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.got:
            time.sleep(0.1)


@dataclass(frozen=True)
class Guard:
    """The process that ends this one if native code keeps it from noticing stop signals; see ``signal_guard``."""

    into: int
    """The pipe to the guard: signal numbers and BEGUN."""
    copies: int
    """The pipe on which the guard copies them."""

    def begin(self) -> None:
        """Say that the first stop signal is enough from now on."""
        with contextlib.suppress(OSError):  # the guard was killed
            os.write(self.into, bytes([signal_guard.BEGUN]))


_guard: Guard | None = None
"""The guard of this process."""


@contextlib.contextmanager
def guarded(start_up: bool) -> Iterator[None]:
    """Have a guard during the block. ``start_up``: the first stop signal must end the process until ``Guard.begin``.

    Without a guard, if the system does not permit another process, only the handlers of Python react. Main thread only.
    """
    global _guard
    line = NOTHING_SAVED if is_rank_zero() else ""
    seconds = START_UP_SECONDS + GUARD_SECONDS if start_up else 0.0
    with contextlib.ExitStack() as pipes:
        (read, into), (copies, write) = os.pipe(), os.pipe()
        for end in (read, into, copies):  # ``read`` stays open, because Python complains about a pipe without a reader
            pipes.callback(os.close, end)
        os.set_blocking(into, False)
        words = [os.getpid(), read, write, seconds, line, *(int(number) for number in STOP_SIGNALS)]
        process = start_guard([str(word) for word in words], (read, write))
        os.close(write)
        if process is None:
            yield
            return
        pipes.callback(process.wait)
        pipes.callback(process.kill)
        _guard = Guard(into, copies)
        try:
            with woken(into):
                yield
        finally:
            _guard = None


def start_guard(arguments: list[str], pipes: tuple[int, int]) -> subprocess.Popen[bytes] | None:
    """The process of ``signal_guard``; None if the system does not permit another process."""
    command = [sys.executable, "-I", "-S", signal_guard.__file__, *arguments]
    # Stop signals of a terminal or a scheduler reach every process. The guard keeps them blocked.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, stdin=quiet, stdout=quiet, pass_fds=pipes, start_new_session=True)
    except OSError:
        return None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def woken(descriptor: int) -> Iterator[None]:
    """Write the numbers of this process's signals to ``descriptor`` during the block. Forked children do not."""

    def forget() -> None:
        with contextlib.suppress(ValueError, OSError):
            if signal.set_wakeup_fd(-1) == descriptor:
                os.close(descriptor)

    before = signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=forget)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)


@contextlib.contextmanager
def unguarded() -> Iterator[None]:
    """Keep signals from the guard during the block, whose owner may take its time after any number of them."""
    before = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)


class Watch:
    """Reacts to stop signals in a thread, because Python runs no handlers while the main thread is in native code.

    Rank 0 acknowledges the first signal on standard error. A second one ends the process at once. Before ``begin``
    there is nothing to save, and the first signal ends the process after START_UP_SECONDS. A context manager for the
    main thread only.
    """

    ACKNOWLEDGED = "stopping at the end of this step, then saving; a second signal ends at once"

    def __init__(self) -> None:
        self._begun = threading.Event()
        self._ended = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Watch:
        if _guard is not None:
            numbers = os.dup(_guard.copies)
        else:
            numbers, write = os.pipe()
            os.set_blocking(write, False)
            self._stack.callback(os.close, write)  # the thread reads end-of-file and ends
            self._stack.enter_context(woken(write))
        threading.Thread(target=self._answer, args=(numbers,), daemon=True).start()
        return self

    def begin(self) -> None:
        """Say that the first signal does not have to end the process from now on."""
        self._begun.set()
        if _guard is not None:
            _guard.begin()

    def __exit__(self, *error: object) -> None:
        self._ended = True
        self.begin()
        self._stack.close()

    def _answer(self, pipe: int) -> None:
        heard = 0
        while (content := os.read(pipe, 64)) and not self._ended:
            for number in content:
                if number not in STOP_SIGNALS:
                    continue
                heard += 1
                if heard > 1:
                    os._exit(second_code(number))
                self._say(self.ACKNOWLEDGED)
                if not self._begun.is_set():
                    threading.Thread(target=self._end_start_up, daemon=True).start()
        os.close(pipe)

    def _end_start_up(self) -> None:
        if not self._begun.wait(START_UP_SECONDS):
            self._say(NOTHING_SAVED)
            os._exit(EXIT_STOPPED)

    def _say(self, line: str) -> None:
        if is_rank_zero():
            with contextlib.suppress(OSError):
                os.write(2, f"{line}\n".encode())


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
        self._watch.begin()

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
