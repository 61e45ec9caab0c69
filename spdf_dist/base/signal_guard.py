"""A script: ends a command whose native code keeps it from noticing its stop signals.

Python runs signal handlers and threads only while no native code holds the interpreter lock. ``signals.guarded`` starts
this script as a process of its own, which shares no lock with the command. The process reads the numbers of the
command's signals from one pipe and copies them to another, from which a thread of the command reads. It sends SIGKILL
if the command still runs SECOND_SECONDS after its second stop signal, or START_UP seconds after the first one if it has
not written BEGUN.

Arguments: the command's process id, the pipe to read, the pipe to write, START_UP in seconds (0: the command has
begun), a line for standard error before the SIGKILL of a start-up, and the numbers of the stop signals. The script
imports only the standard library, because it runs with ``python -I -S``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Collection

BEGUN = 0
"""A byte that is no signal's number: the command looks at stop requests from now on."""
SECOND_SECONDS = 0.5
"""Time for the command to end by itself, with its own exit code, after a second stop signal."""
PR_SET_PDEATHSIG = 1


def signal_when_parent_ends(number: int) -> None:
    """Have the kernel send the signal ``number`` to this process when its parent ends. Does nothing except on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def guard(command: int, heard: int, copied: int, start_up: float, line: str, stop_signals: Collection[int]) -> None:
    """Watch the process ``command`` until it closes the pipe ``heard`` or has to be killed."""
    begun, stops, deadline = start_up == 0, 0, float("inf")
    while True:
        wait = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
        if not select.select([heard], [], [], wait)[0]:
            break
        numbers = os.read(heard, 64)
        if not numbers:
            return
        with contextlib.suppress(OSError):  # the command has stopped reading
            os.write(copied, numbers)
        for number in numbers:
            if number == BEGUN:
                begun = True
                if stops == 1:
                    deadline = float("inf")
            elif number in stop_signals:
                stops += 1
                if stops == 2:
                    deadline = time.monotonic() + SECOND_SECONDS
                elif stops == 1 and not begun:
                    deadline = time.monotonic() + start_up
    if stops == 1 and line:
        with contextlib.suppress(OSError):
            os.write(2, f"{line}\n".encode())
    if os.getppid() == command:
        os.kill(command, signal.SIGKILL)


if __name__ == "__main__":
    signal_when_parent_ends(signal.SIGKILL)  # a child of the command may keep the pipe open after the command has ended
    process, read, write, seconds, text, *numbers = sys.argv[1:]
    if os.getppid() == int(process):
        guard(int(process), int(read), int(write), float(seconds), text, {int(number) for number in numbers})
