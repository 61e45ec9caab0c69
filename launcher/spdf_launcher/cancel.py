"""Stops jobs: marks them and the jobs that depend on them as cancelled, and signals running ones to save and stop."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import Any

from spdf_dist.base.file_locks import birth, is_locked
from spdf_dist.workflow_folder import CANCELLED, DONE, job_folder, read_json
from spdf_launcher.attempts import history
from spdf_launcher.executors import Executor
from spdf_launcher.folder import now, write_json
from spdf_launcher.plan import Job

REASON = "by `spdf cancel`"


def cancel(root: Path, jobs: list[Job], chosen: list[Job], executor: Executor) -> list[str]:
    """Cancel ``chosen`` and all jobs that need them; return one line per job. Finished jobs are not changed."""
    with executor.cancelling(root) as states:
        names = {job.id for job in chosen}
        lines = []
        for job in jobs:
            if job.id not in names and not names.intersection(job.needs):
                continue
            folder = job_folder(root, job.id)
            manifest = read_json(folder.manifest) or {}
            if manifest.get("key") == job.key:
                if manifest.get("status") == DONE:
                    names.discard(job.id)
                continue
            names.add(job.id)
            mark_cancelled(root, job)
            state = states.get(job.id)
            if state is not None and state.is_live:
                lines.append(f"{job.id}: {executor.cancel(job, state)}")
            elif is_locked(folder.lock):
                lines.append(f"{job.id}: {stop(root, job, executor)}")
            else:
                lines.append(f"{job.id}: cancelled")
        return lines or ["nothing to cancel"]


def mark_cancelled(root: Path, job: Job) -> None:
    """Write the manifest that prevents a job from starting; the next `spdf run` removes it."""
    content = {"schema_version": 1, "job": job.id, "kind": job.kind, "status": CANCELLED, "reason": REASON}
    write_json(job_folder(root, job.id).manifest, content | {"exit_code": None, "key": job.key, "ended": now()})


def stop(root: Path, job: Job, executor: Executor) -> str:
    """Signal the runner of a running job to stop, or its command if the runner is gone; return a message."""
    folder = job_folder(root, job.id)
    past = history(folder)
    start, command = past.last_start, past.last_command
    if start is None:
        return "cancelled as it was starting"
    if start["host"] != socket.gethostname():
        return f"runs on {start['host']}: run `spdf cancel` there"
    if runs(start):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(start["pid"]), signal.SIGTERM)
        return "told to save and stop"
    if command is not None and runs(command):
        executor.stop(int(command["pid"]))
        return "its runner is gone; its command was told to save and stop"
    return f"cancelled; the process that holds {folder.lock} was not found, so it could not be stopped"


def runs(line: dict[str, Any]) -> bool:
    """Whether the process of a line of attempts.jsonl still runs; its start time rules out a reused process id."""
    return line.get("birth") is not None and birth(int(line["pid"])) == line["birth"]
