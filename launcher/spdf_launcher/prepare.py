"""Determines which jobs must run, moves results with changed inputs to .replaced/, and writes the jobs' files."""

from __future__ import annotations

import itertools
import os
from dataclasses import asdict
from pathlib import Path

import yaml

from spdf_dist.base.file_locks import is_locked
from spdf_dist.config.errors import UserError
from spdf_dist.workflow_folder import PLAN, job_folder, read_json
from spdf_launcher.attempts import RESET, record
from spdf_launcher.executors.base import Executor
from spdf_launcher.folder import write_json, write_text
from spdf_launcher.journal import Journal
from spdf_launcher.plan import Job
from spdf_launcher.workflow import Workflow


def wanted_jobs(jobs: list[Job], root: Path) -> set[str]:
    """Ids of the jobs that are not done with these inputs, and that no job needs or a wanted job needs.

    A failed cell is therefore not retried after `select` has chosen among the others.
    """
    children: dict[str, list[str]] = {job.id: [] for job in jobs}
    for job in jobs:
        for need in job.needs:
            children[need].append(job.id)
    wanted: set[str] = set()
    for job in reversed(jobs):
        done = job_folder(root, job.id).is_done(job.key)
        if not done and (not children[job.id] or any(child in wanted for child in children[job.id])):
            wanted.add(job.id)
    return wanted


def is_changed(job: Job, root: Path) -> bool:
    """Whether the job's folder holds results of other inputs."""
    spec = read_json(job_folder(root, job.id).spec)
    return spec is not None and spec.get("key") != job.key


def prepare(
    workflow: Workflow,
    jobs: list[Job],
    root: Path,
    executor: Executor,
    journal: Journal,
    wanted: set[str],
) -> None:
    """Write job.json of every job in ``wanted`` (ids). Running jobs with the same inputs are not changed.

    Raises:
        UserError: a job runs with other inputs.
    """
    by_id = {job.id: job for job in jobs}
    running = {job_id for job_id in wanted if is_locked(job_folder(root, job_id).lock)}
    for job_id in sorted(running):
        if is_changed(by_id[job_id], root):
            raise UserError(f"{job_id}: runs now with other inputs: `spdf cancel {root} {job_id}`, then run this again")
    write_text(root / "workflow.yaml", yaml.safe_dump(workflow.tree, sort_keys=False, width=120))
    write_json(
        root / PLAN,
        {"schema_version": 1, "source": str(workflow.path), "on": executor.name, "jobs": [asdict(job) for job in jobs]},
    )
    for job in jobs:
        if job.id not in wanted or job.id in running:
            continue
        folder = job_folder(root, job.id)
        if is_changed(job, root):
            aside = set_aside(folder.path, root, job.id)
            journal.write("replaced", job=job.id, moved_to=str(aside))
        folder.manifest.unlink(missing_ok=True)
        if folder.attempts.exists():
            record(folder, RESET)
        spec = asdict(job) | {
            "schema_version": 1,
            "parents": {need: by_id[need].key for need in job.needs},
            "on": executor.name,
            "program": executor.program(job, workflow, root),
            "ranks_tell": executor.reports_code(job),
            "cwd": str(Path.cwd()),
        }
        write_json(folder.spec, spec)


def set_aside(path: Path, root: Path, job_id: str) -> Path:
    """Move a job's folder under ``.replaced/``; nothing is deleted."""
    places = (root / ".replaced" / str(number) / job_id for number in itertools.count(1))
    target = next(place for place in places if not place.exists())
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.rename(target)
    except OSError as error:
        raise UserError(f"{path}: cannot be moved to {target}: {error.strerror}") from None
    return target


def require_folder(root: Path) -> None:
    """Make ``root``. Raises UserError if it is a file, not writable, or holds files that are not a workflow's."""
    if root.exists() and not root.is_dir():
        raise UserError(f"--dir {root}: is a file")
    root.mkdir(parents=True, exist_ok=True)
    if (root / "journal.jsonl").is_dir():
        raise UserError(f"--dir {root}: its journal.jsonl is a folder: name a new folder")
    if not os.access(root, os.W_OK):
        raise UserError(f"--dir {root}: is not writable")
    strangers = [path.name for path in root.iterdir()] if not (root / "journal.jsonl").exists() else []
    if strangers:
        raise UserError(f"--dir {root}: holds {strangers[0]} and no workflow: name a new folder")
