"""Slurm's states of a workflow's jobs, with or without slurmdbd.

squeue lists jobs that wait, run, or ended a short time ago. For other jobs sacct reads the database, then the plain
file of finished jobs. Whether a job is done follows from its manifest only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spdf_dist.config.errors import UserError
from spdf_dist.workflow_folder import CANCELLED, FAILED
from spdf_launcher.journal import events
from spdf_launcher.slurm import commands

LIVE = {
    "PENDING": "queued",
    "CONFIGURING": "running",
    "RUNNING": "running",
    "COMPLETING": "running",
    "SUSPENDED": "queued",
    "STOPPED": "queued",
    "SIGNALING": "running",
    "STAGE_OUT": "running",
    "RESIZING": "running",
    "REQUEUED": "queued",
    "REQUEUE_FED": "queued",
    "REQUEUE_HOLD": "queued",
    "SPECIAL_EXIT": "queued",
    "RESV_DEL_HOLD": "queued",
}
NEVER = "DependencyNeverSatisfied"
DEPENDENCY = "Dependency"
LOST = "lost"


@dataclass(frozen=True)
class SlurmState:
    """Slurm's record of one job (one array task)."""

    id: str
    state: str
    """Slurm's name of the state; empty if Slurm does not know the job."""
    reason: str | None

    @property
    def is_live(self) -> bool:
        """Whether the job may still run."""
        return self.state in LIVE and self.reason != NEVER

    def in_words(self) -> tuple[str, str | None]:
        """A state of ``spdf status``, and the reason."""
        reason = None if self.reason in (None, "", "None") else self.reason
        if self.reason == NEVER or self.state == "CANCELLED":
            return CANCELLED, "a job that it needs did not finish" if self.reason == NEVER else None
        if self.state in LIVE:
            name = LIVE[self.state]
            if name == "queued" and reason == DEPENDENCY:
                return "waiting", "waits for the jobs that it needs"
            return name, reason if name == "queued" else None
        if not self.state:
            return LOST, "Slurm no longer knows it: run the same command again"
        if self.state == "COMPLETED":
            return FAILED, "Slurm says COMPLETED, but there is no manifest"
        return FAILED, f"Slurm: {self.state}" + (f" ({reason})" if reason else "")


@dataclass(frozen=True)
class Submission:
    """A `submitted` line of the journal."""

    id: str
    tasks: dict[str, int | None]
    """Array index of each job (None: not an array)."""
    keys: dict[str, str]

    def slurm_id(self, job: str) -> str:
        """The id of one job in the form of scontrol and scancel."""
        index = self.tasks[job]
        return self.id if index is None else f"{self.id}_{index}"


def submissions(root: Path) -> dict[str, Submission]:
    """The newest submission of each job of a folder."""
    found: dict[str, Submission] = {}
    for line in events(root, "submitted"):
        submission = Submission(str(line["id"]), line["tasks"], line["keys"])
        found |= dict.fromkeys(submission.tasks, submission)
    return found


def queue() -> dict[str, tuple[str, str, str]]:
    """This user's jobs in squeue: (state, reason, comment) by id with array index.

    Raises UserError if Slurm does not answer.
    """
    done = commands.call(["squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", "%i|%T|%r|%k"])
    if done.returncode:
        raise UserError(f"Slurm does not answer: {commands.complaint(done)}")
    found = {}
    for line in done.stdout.splitlines():
        fields = line.split("|", 3)
        if len(fields) == 4:
            found[fields[0]] = (fields[1], fields[2], fields[3])
    if done.stdout.strip() and not found:  # as an empty queue it would mean that the jobs are lost
        raise UserError(f"squeue printed {done.stdout.strip()[:80]!r} instead of its jobs")
    return found


def finished(ids: list[str]) -> dict[str, str]:
    """States from sacct of jobs that squeue does not list; that of the last attempt."""
    found: dict[str, str] = {}
    for more in ([], ["-c"]):
        words = ["sacct", *more, "-n", "-P", "-o", "jobid,state", "-j", ",".join(ids)]
        done = commands.call(words)
        if done.returncode:
            continue
        for line in done.stdout.splitlines():
            job, _, state = line.partition("|")
            if job in ids and state:
                found[job] = state.split()[0]
        if found:
            break
    return found


def slurm_states(root: Path) -> dict[str, SlurmState]:
    """The submitted jobs of a folder by job id; empty without Slurm."""
    known = submissions(root)
    if not known or not commands.present():
        return {}
    listed = queue()
    ids = {job: submission.slurm_id(job) for job, submission in known.items()}
    forgotten = sorted({slurm_id for slurm_id in ids.values() if slurm_id not in listed})
    past = finished(forgotten) if forgotten else {}
    states = {}
    for job, slurm_id in ids.items():
        state, reason, _ = listed.get(slurm_id, (past.get(slurm_id, ""), "", ""))
        states[job] = SlurmState(slurm_id, state, reason)
    return states


def recover(root: Path) -> list[dict[str, Any]]:
    """Submissions in Slurm without a `submitted` line in the journal, found by their comments."""
    said = {line["comment"] for line in events(root, "submitted", "refused")}
    open_intents = {line["comment"]: line for line in events(root, "intent") if line["comment"] not in said}
    if not open_intents:
        return []
    found: dict[str, dict[str, Any]] = {}
    for slurm_id, (_, _, comment) in queue().items():
        if comment in open_intents:
            intent = open_intents[comment]
            found[comment] = {key: intent[key] for key in ("comment", "tasks", "keys")} | {
                "id": slurm_id.partition("_")[0]
            }
    return list(found.values())
