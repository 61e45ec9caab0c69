"""The state of every job of a workflow's folder, from its files and, for jobs on Slurm, from Slurm."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from spdf_dist.base.file_locks import is_locked
from spdf_dist.config.errors import SpdfError, UserError
from spdf_dist.workflow_folder import CANCELLED, DONE, FAILED, PLAN, job_folder, read_json
from spdf_launcher.attempts import history
from spdf_launcher.executors import JobState as BatchState
from spdf_launcher.executors import find_executor
from spdf_launcher.journal import require_workflow
from spdf_launcher.kinds import KINDS
from spdf_launcher.plan import Job, job_from_json
from spdf_launcher.progress import Progress, read_progress
from spdf_launcher.slurm.state import LOST

WAITING, READY, QUEUED, RUNNING, STOPPED = "waiting", "ready", "queued", "running", "stopped"
ENDED = (DONE, FAILED, CANCELLED, LOST)


@dataclass(frozen=True)
class JobState:
    """One row of the table."""

    job: str
    state: str
    slurm_id: str | None
    restarts: int
    reason: str | None
    progress: Progress | None


def read_plan(root: Path) -> list[Job]:
    """The jobs of a workflow's folder. Raises UserError if it holds no workflow."""
    require_workflow(root)
    content = read_json(root / PLAN)
    if content is None:
        raise UserError(f"{root}: no workflow has been planned there: run `spdf run` again")
    try:
        return [job_from_json(job) for job in content["jobs"]]
    except (KeyError, TypeError):
        raise UserError(
            f"{root / PLAN}: is not a plan that this version reads: run `spdf run` again, which keeps complete jobs"
        ) from None


def runs_on(root: Path) -> str:
    """The executor of the folder's last start, such as local or slurm."""
    return str((read_json(root / PLAN) or {}).get("on"))


def gather(root: Path) -> list[JobState]:
    """The state of every job, in the order of the plan."""
    jobs = read_plan(root)
    try:
        states_there = find_executor(runs_on(root))().states(root)
    except SpdfError as error:
        print(f"{error}; the states are only from the jobs' files", file=sys.stderr)
        states_there = {}
    states: dict[str, JobState] = {}
    for job in jobs:
        states[job.id] = job_state(job, root, states_there.get(job.id), states)
    return list(states.values())


def job_state(job: Job, root: Path, slurm: BatchState | None, before: dict[str, JobState]) -> JobState:
    """The state of one job; ``before`` has the states of the jobs that it needs."""
    folder = job_folder(root, job.id)
    past = history(folder)
    manifest = read_json(folder.manifest) or {}
    progress = read_progress(folder.run_dir, job.steps) if KINDS[job.kind].continues else None
    slurm_id = slurm.id if slurm is not None else None

    def state(name: str, reason: str | None) -> JobState:
        return JobState(job.id, name, slurm_id, max(0, past.count - 1), reason, progress)

    current = manifest.get("key") == job.key
    if current and manifest.get("status") in (DONE, FAILED, CANCELLED):
        return state(str(manifest["status"]), manifest.get("reason"))
    broken = [before[need] for need in job.needs if before[need].state in (FAILED, CANCELLED) and not job.fan_in]
    cause = [f"{need.job} {need.state}" + (f": {need.reason}" if need.reason else "") for need in broken]
    if slurm is not None:
        name, reason = slurm.in_words()
        return state(CANCELLED, cause[0]) if cause and name in (CANCELLED, LOST) else state(name, reason)
    if is_locked(folder.lock):
        return state(RUNNING, None)
    if cause:
        return state(CANCELLED, cause[0])
    missing = [need for need in job.needs if before[need].state != DONE]
    if missing:
        return state(WAITING, f"needs {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""))
    if past.last_end is not None and past.last_end.get("outcome") == "stopped":
        return state(STOPPED, "stopped by a signal: run the same command again to continue")
    if past.last_start is not None and past.last_end is None:
        return state(STOPPED, "its process was lost: run the same command again to continue")
    return state(READY, None)


def exit_code(states: list[JobState], jobs: list[Job]) -> int:
    """1 if a job failed, was cancelled or lost and its result is still needed; else 0.

    A result is still needed if no job uses it, or if a job that uses it also failed and is still needed.
    """
    by_id = {state.job: state for state in states}
    users: dict[str, list[str]] = {job.id: [] for job in jobs}
    for job in jobs:
        for need in job.needs:
            users[need].append(job.id)

    def lacking(job_id: str) -> bool:
        bad = by_id[job_id].state in (FAILED, CANCELLED, LOST)
        return bad and (not users[job_id] or any(by_id[user].state != DONE and lacking(user) for user in users[job_id]))

    return 1 if any(lacking(job.id) for job in jobs) else 0


def is_more_to_come(wanted: Collection[str], states: list[JobState], plan: list[Job], launcher: bool) -> bool:
    """Whether one of the ``wanted`` jobs runs or will run without further commands.

    ``launcher``: whether a launcher held the lock before the states were gathered; it may start further jobs.
    """
    by_id = {state.job: state for state in states}
    live: set[str] = set()
    for job in plan:  # each job follows those that it needs
        state = by_id[job.id]
        waits = state.state == WAITING and (state.slurm_id is not None or not live.isdisjoint(job.needs))
        if state.state in (RUNNING, QUEUED) or waits:
            live.add(job.id)
    left = [job for job in wanted if by_id[job].state not in ENDED]
    return bool(left) and (launcher or not live.isdisjoint(left))


def table(states: list[JobState]) -> str:
    """The states as a table of plain text."""
    head = ("JOB", "STATE", "SLURM", "RESTARTS", "PROGRESS", "REASON")
    rows = [
        (
            state.job,
            state.state,
            state.slurm_id or "",
            str(state.restarts or ""),
            state.progress.text() if state.progress else "",
            state.reason or "",
        )
        for state in states
    ]
    used = [column for column in range(len(head)) if column < 2 or any(row[column] for row in rows)]
    widths = {column: max(len(row[column]) for row in [head, *rows]) for column in used}
    return "\n".join("  ".join(row[c].ljust(widths[c]) for c in used).rstrip() for row in [head, *rows])
