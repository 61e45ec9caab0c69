"""Runs one command, passes signals on to it, and finds out what it did."""

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
"""From the second signal to the end by force."""
HEAR_SECONDS = 2.0
"""How much later than its ranks a runner may hear what ends all of them."""


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
    """Run ``command`` and return its exit code, 128 + n when it died of signal n.

    ``output`` and ``errors`` are file descriptors. ``forward`` passes a signal on to the command's process, and
    ``started`` is called with its id.
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
    """Process ids of the ranks of this machine in a session."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                is_rank = any(pair == (b"-m", RANK_MODULE.encode()) for pair in itertools.pairwise(words))
                if is_rank and os.getsid(int(folder.name)) == session:
                    found.append(int(folder.name))
    return found


def told_code(code: int, exit_file: Path) -> int:
    """The trainer's own exit code, which rank 0 wrote down; ``code`` is what the launcher of the ranks gave."""
    try:
        told = int(exit_file.read_text())
    except (OSError, ValueError):
        # No word from rank 0: the ranks were ended, whatever their launcher says (srun may say 0 for a lost node).
        return code or 1
    return told or code


def outcome_of(code: int, signals: ReceivedSignals) -> str:
    """`done`, `stopped` or `failed`."""
    if code == 0:
        return "done"
    # Commands that save nothing die of the signal that was passed on: no failure of theirs.
    stopped = code == EXIT_STOPPED or (signals.got and code not in (EXIT_BAD_INPUT, EXIT_NON_FINITE))
    return "stopped" if stopped else "failed"


def goes_on(signals: ReceivedSignals) -> bool:
    """Whether a job on Slurm that was stopped belongs back into the queue.

    It does after SIGUSR1, the signal before its limit, and when its ranks alone heard one, as at preemption. scancel
    tells the runner too.
    """
    signals.pause(HEAR_SECONDS)
    return signal.SIGUSR1 in signals.got or not signals.got
