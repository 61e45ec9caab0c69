"""Stops jobs: marks them and what depends on them as cancelled, and signals those that run."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

from spdf_launcher.attempts import history
from spdf_launcher.folder import CANCELLED, DONE, is_locked, job_folder, now, read_json, write_json
from spdf_launcher.plan import Job

REASON = "by `spdf cancel`"


def cancel(root: Path, jobs: list[Job], chosen: list[Job]) -> list[str]:
    """Cancel ``chosen`` and all that needs them, and say so, a line each. Jobs that are done stay done."""
    names = {job.id for job in chosen}
    lines = []
    for job in jobs:
        if job.id not in names and not names.intersection(job.needs):
            continue
        folder = job_folder(root, job.id)
        manifest = read_json(folder.manifest)
        if manifest is not None and manifest.get("key") == job.key:
            if manifest.get("status") == DONE:
                names.discard(job.id)
            continue
        names.add(job.id)
        mark_cancelled(root, job)
        lines.append(f"{job.id}: cancelled")
        if is_locked(folder.lock):
            lines[-1] = f"{job.id}: {stop(root, job)}"
    return lines or ["nothing to cancel"]


def mark_cancelled(root: Path, job: Job) -> None:
    """Write the manifest that keeps a job from starting; the next `spdf run` takes it away."""
    content = {"schema_version": 1, "job": job.id, "kind": job.kind, "status": CANCELLED, "reason": REASON}
    write_json(job_folder(root, job.id).manifest, content | {"exit_code": None, "key": job.key, "ended": now()})


def stop(root: Path, job: Job) -> str:
    """Tell the runner of a running job to stop; what was done, in words."""
    start = history(job_folder(root, job.id)).last_start
    if start is None:
        return "cancelled as it was starting"
    if start["host"] != socket.gethostname():
        return f"runs on {start['host']}: run `spdf cancel` there"
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(start["pid"]), signal.SIGTERM)
    return "told to save and stop"
