"""The Slurm job that this process runs in: its id, whether it is preempted, putting it back into the queue."""

from __future__ import annotations

import os
import subprocess
import time


def slurm_job() -> str | None:
    """The id of the Slurm job around this process, as scontrol takes it; None outside of one.

    An array task is ARRAY_INDEX: of one task SLURM_JOB_ID is the id of the array, which means all tasks to scontrol.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def is_preempted() -> bool:
    """Whether Slurm is taking this job's nodes away for another job; False when Slurm does not say."""
    words = ["squeue", "-h", "-j", slurm_job() or "", "-O", "PreemptTime:32"]
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except OSError:
        return False
    return done.returncode == 0 and done.stdout.strip() not in ("", "N/A")


def requeue_self(wait_seconds: float = 120.0) -> None:
    """Requeue this job. Slurm then ends this process; when it does not, SystemExit says so with code 1."""
    job = slurm_job()
    assert job is not None
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode == 0:
        time.sleep(wait_seconds)
    raise SystemExit(f"spdf job: could not requeue {job}: {done.stderr.strip() or 'still running'}")
