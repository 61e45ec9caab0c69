"""Calls of sbatch, squeue, scancel and sacct by argument lists; an error is one line."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from spdf_dist.config.errors import UserError


def present() -> bool:
    """Whether this machine has Slurm's commands."""
    return shutil.which("sbatch") is not None and shutil.which("squeue") is not None


def require() -> None:
    """Raise UserError unless this machine has Slurm's commands."""
    if not present():
        raise UserError("no Slurm on this machine (sbatch is not on PATH): run this on a login node, or use --on local")


def call(words: Sequence[str], keep_open: Sequence[int] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. It inherits the descriptors in ``keep_open``, and with them their locks."""
    return subprocess.run(
        list(words), capture_output=True, text=True, stdin=subprocess.DEVNULL, pass_fds=tuple(keep_open)
    )


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
    """Submit a script and return its job id. sbatch holds ``lock`` while it runs. Raises UserError if it refuses."""
    done = call(["sbatch", "--parsable", *options, str(script)], keep_open=(lock,))
    if done.returncode:
        raise UserError(f"sbatch refuses {script.name}: {complaint(done)}")
    return done.stdout.strip().partition(";")[0]
