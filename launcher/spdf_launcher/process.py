"""Runs one command, forwards signals to it, and determines its outcome."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from spdf_dist.base.signals import ReceivedSignals
from spdf_dist.config.errors import EXIT_BAD_INPUT, EXIT_NON_FINITE, EXIT_STOPPED
from spdf_launcher.rank import RANK_MODULE

POLL_SECONDS = 0.1
KILL_SECONDS = 30.0
"""Time from the second signal to SIGKILL."""
HEAR_SECONDS = 2.0
"""Longest delay between a signal to the ranks and the same signal to their runner."""


def run_command(
    command: Sequence[str],
    signals: ReceivedSignals,
    *,
    cwd: str | None,
    environment: dict[str, str],
    output: int,
    errors: int,
    forward: Callable[[subprocess.Popen[bytes], int], None],
    keep_open: Sequence[int] = (),
    started: Callable[[int], None] = lambda pid: None,
) -> int:
    """Run ``command`` and return its exit code, or 128 + n if signal n ended it.

    Args:
        output: file descriptor for standard output.
        errors: file descriptor for standard error.
        forward: forwards a signal to the command's process.
        keep_open: file descriptors that the command inherits.
        started: called with the command's process id.
    """
    try:
        process = subprocess.Popen(
            list(command),
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
            pass_fds=tuple(keep_open),
        )
    except OSError as error:
        os.write(errors, f"{command[0]}: {error.strerror}\n".encode())
        return EXIT_BAD_INPUT
    started(process.pid)
    passed, deadline = 0, float("inf")
    while process.poll() is None:
        while passed < len(signals.got):
            forward(process, signals.got[passed])
            passed += 1
            if passed == 2:
                deadline = time.monotonic() + KILL_SECONDS
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def ranks_below(session: int) -> list[int]:
    """Process ids of the ranks on this machine in a session."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                is_rank = any(pair == (b"-m", RANK_MODULE.encode()) for pair in itertools.pairwise(words))
                if is_rank and os.getsid(int(folder.name)) == session:
                    found.append(int(folder.name))
    return found


def reported_exit_code(code: int, exit_file: Path) -> int:
    """The trainer's exit code, which rank 0 wrote to ``exit_file``; ``code`` is that of the ranks' launcher."""
    try:
        told = int(exit_file.read_text())
    except (OSError, ValueError):
        # Without the file, the ranks did not end by themselves: srun may return 0 after a lost node.
        return code or 1
    return told or code


def outcome_of(code: int, signals: ReceivedSignals) -> str:
    """`done`, `stopped` or `failed`."""
    if code == 0:
        return "done"
    # A command without checkpoints dies of the forwarded signal. This is not a failure.
    stopped = code == EXIT_STOPPED or (signals.got and code not in (EXIT_BAD_INPUT, EXIT_NON_FINITE))
    return "stopped" if stopped else "failed"


def goes_on(signals: ReceivedSignals) -> bool:
    """Whether a stopped job on Slurm must be requeued.

    It must after SIGUSR1, the signal before the time limit, and if only the ranks received a signal, as at preemption.
    scancel also signals the runner.
    """
    signals.pause(HEAR_SECONDS)
    return signal.SIGUSR1 in signals.got or not signals.got
