"""Calls of sbatch, squeue, scancel and sacct by argument lists; an error is one line."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from spdf_dist.config.errors import SpdfError, UserError

ANSWER_SECONDS = 120.0
"""Longest wait for a command of Slurm, whose own timeouts are shorter."""
JOB_ID = re.compile(r"(\d+)(?:;\S*)?")


def present() -> bool:
    """Whether this machine has Slurm's commands."""
    return shutil.which("sbatch") is not None and shutil.which("squeue") is not None


def require() -> None:
    """Raise UserError unless this machine has Slurm's commands."""
    if not present():
        raise UserError("no Slurm on this machine (sbatch is not on PATH): run this on a login node, or use --on local")


class NoAnswerError(SpdfError):
    """A command of Slurm whose effect is not known: it did not end in time, or printed something else than expected."""


def call(words: Sequence[str], keep_open: Sequence[int] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. It inherits the descriptors in ``keep_open``, and with them their locks.

    A command that cannot be started has exit code 127. Raises NoAnswerError after ANSWER_SECONDS.
    """
    try:
        return subprocess.run(
            list(words),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
            pass_fds=tuple(keep_open),
            timeout=ANSWER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise NoAnswerError(
            f"{words[0]} did not answer in {ANSWER_SECONDS:g} s: is Slurm's controller down? Run the same command "
            "again later"
        ) from None
    except OSError as error:
        return subprocess.CompletedProcess(list(words), 127, "", f"{words[0]}: {error.strerror}")


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The error message of a failed command in one line."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines)) or f"exit code {done.returncode}"


def test_only(script: Path) -> None:
    """Raise UserError if sbatch refuses a script. This does not check accounts; only a submission does."""
    done = call(["sbatch", "--test-only", str(script)])
    if done.returncode:
        raise UserError(f"sbatch refuses {script.name}: {complaint(done)}")


def submit(script: Path, options: Sequence[str], lock: int) -> str:
    """Submit a script and return its job id. sbatch holds ``lock`` while it runs.

    Raises UserError if sbatch refuses the script. Raises NoAnswerError if it is not known whether the job is submitted;
    then ``recover`` finds it later by its comment.
    """
    done = call(["sbatch", "--parsable", *options, str(script)], keep_open=(lock,))
    if done.returncode:
        raise UserError(f"sbatch refuses {script.name}: {complaint(done)}")
    # A site's own sbatch may print further lines.
    ids = [match[1] for line in done.stdout.splitlines() if (match := JOB_ID.fullmatch(line.strip()))]
    if not ids:
        raise NoAnswerError(
            f"sbatch printed {done.stdout.strip()[:80]!r} for {script.name} instead of a job id: see `squeue --me`"
        )
    return ids[-1]
