"""The Slurm job that this process runs in: its id, whether it is preempted, and requeueing it."""

from __future__ import annotations

import os
import subprocess
import time

ANSWER_SECONDS = 120.0
"""Longest wait for squeue and scontrol."""


def slurm_job() -> str | None:
    """The id of this process's Slurm job in the form of scontrol; None outside a job.

    An array task has the form ARRAY_INDEX. SLURM_JOB_ID of one of the tasks equals the id of the array, which scontrol
    takes for all tasks.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def is_preempted() -> bool:
    """Whether Slurm preempts this job for another one; False if squeue fails."""
    words = ["squeue", "-h", "-j", slurm_job() or "", "-O", "PreemptTime:32"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=ANSWER_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.strip() not in ("", "N/A")


def requeue_self(wait_seconds: float = 120.0) -> None:
    """Requeue this job. Slurm then ends this process. Raises SystemExit with a message if it does not."""
    job = slurm_job()
    assert job is not None
    words = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=ANSWER_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SystemExit(f"spdf job: could not requeue {job}: {error}") from None
    if done.returncode == 0:
        time.sleep(wait_seconds)
    raise SystemExit(f"spdf job: could not requeue {job}: {done.stderr.strip() or 'still running'}")
