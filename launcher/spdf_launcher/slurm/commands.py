"""Calls of sbatch, squeue, scancel, sacct: argument lists, one clear line when one refuses."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from spdf_dist.config.errors import UserError


def present() -> bool:
    """Whether this machine can talk to a Slurm."""
    return shutil.which("sbatch") is not None and shutil.which("squeue") is not None


def require() -> None:
    """UserError unless this machine has Slurm's commands."""
    if not present():
        raise UserError("no Slurm on this machine (sbatch is not on PATH): run this on a login node, or use --on local")


def call(words: Sequence[str], keep_open: Sequence[int] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. The descriptors in ``keep_open`` are inherited: a lock on them lasts as long."""
    return subprocess.run(
        list(words), capture_output=True, text=True, stdin=subprocess.DEVNULL, pass_fds=tuple(keep_open)
    )


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that failed said, in one line."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines)) or f"exit code {done.returncode}"


def test_only(script: Path) -> None:
    """UserError when sbatch would refuse a script. (It does not check accounts; submission does.)"""
    done = call(["sbatch", "--test-only", str(script)])
    if done.returncode:
        raise UserError(f"sbatch refuses {script.name}: {complaint(done)}")


def submit(script: Path, options: Sequence[str], lock: int) -> str:
    """Submit a script and return its job id; UserError when sbatch refuses. The submission holds ``lock``."""
    done = call(["sbatch", "--parsable", *options, str(script)], keep_open=(lock,))
    if done.returncode:
        raise UserError(f"sbatch refuses {script.name}: {complaint(done)}")
    return done.stdout.strip().partition(";")[0]
