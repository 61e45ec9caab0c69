"""Submits a workflow to Slurm: every job exactly once, with its dependencies; or no job if sbatch refuses one."""

from __future__ import annotations

import secrets
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from spdf_dist.base.numbers import counted
from spdf_dist.config.errors import UserError
from spdf_dist.workflow_folder import CANCELLED, DONE, FAILED, job_folder
from spdf_launcher.executors.base import Executor
from spdf_launcher.journal import Journal, events
from spdf_launcher.plan import Job
from spdf_launcher.prepare import prepare, require_folder, wanted_jobs
from spdf_launcher.slurm import commands
from spdf_launcher.slurm.script import FOLDER, Script, scripts, write_scripts
from spdf_launcher.slurm.state import SlurmState, Submission, recover, slurm_states, submissions
from spdf_launcher.status import LOST, gather, table
from spdf_launcher.workflow import Workflow

WAIT_SECONDS = 2.0


def run_on_slurm(executor: Executor, workflow: Workflow, jobs: list[Job], root: Path, wait: bool) -> int:
    """Submit the missing jobs; with ``wait`` also wait for their end. Returns 0, or 1 if a job is not done then."""
    commands.require()
    require_folder(root)
    with Journal(root) as journal:
        Submitter(executor, workflow, jobs, root, journal).submit()
    if not wait:
        print(f"`spdf status {root}` shows the state of the jobs")
        return 0
    return wait_for_end(jobs, root)


def say_what(workflow: Workflow, jobs: list[Job], root: Path) -> None:
    """Print the scripts that would be submitted, and let sbatch check them if this machine has Slurm."""
    wanted = wanted_jobs(jobs, root)
    found = scripts(jobs, root)
    with tempfile.TemporaryDirectory(prefix="spdf-", ignore_cleanup_errors=True) as folder:
        written = write_scripts(found, root, Path(folder), workflow.cluster)
        for script in found:
            count = sum(job.id in wanted for job in script.jobs)
            if not count:
                print(f"# {script.path}: nothing to do, unchanged")
                continue
            needs = sorted({need for job in script.jobs for need in job.needs if need in wanted})
            print(f"# {script.path}: {count} of {len(script.jobs)} jobs, after {', '.join(needs) or 'nothing'}")
            print(written[script.name].read_text(encoding="utf-8"))


def check_scripts(workflow: Workflow, jobs: list[Job], root: Path) -> str:
    """Let sbatch check every script; return the result as a message. Raises UserError if it refuses one."""
    if not commands.present():
        return "no sbatch here, so Slurm did not check them"
    with tempfile.TemporaryDirectory(prefix="spdf-", ignore_cleanup_errors=True) as folder:
        for path in write_scripts(scripts(jobs, root), root, Path(folder), workflow.cluster).values():
            commands.test_only(path)
    return "sbatch accepts every script"


@dataclass(frozen=True)
class Batch:
    """Jobs of one script that are submitted together, because they depend on the same submissions."""

    script: Script
    jobs: list[Job]
    dependencies: tuple[str, ...]


class Submitter:
    """One submission of a workflow."""

    def __init__(self, executor: Executor, workflow: Workflow, jobs: list[Job], root: Path, journal: Journal) -> None:
        self.executor, self.workflow, self.jobs, self.root, self.journal = executor, workflow, jobs, root, journal
        self.scripts = scripts(jobs, root)
        self.live: dict[str, Submission] = {}
        self.new: list[str] = []

    def submit(self) -> None:
        """Submit the wanted jobs that are not in the queue.

        Raises:
            UserError: sbatch refuses a script; the jobs of this call are then cancelled.
        """
        for line in recover(self.root):
            self.journal.write("submitted", recovered=True, **line)
            print(f"found job {line['id']}, submitted by a launcher that was killed: {', '.join(line['tasks'])}")
        states = slurm_states(self.root)
        wanted = wanted_jobs(self.jobs, self.root)
        queued = self.queued(states)
        for job_id in [job_id for job_id in wanted if self.must_rest(job_id, queued)]:
            wanted.discard(job_id)
            if job_id not in queued:
                print(f"{job_id}: not changed while jobs that need it are in the queue")
        found = [script for script in self.scripts if any(job.id in wanted for job in script.jobs)]
        written = write_scripts(found, self.root, self.root / FOLDER, self.workflow.cluster)
        for script in found:
            commands.test_only(written[script.name])
        prepare(self.workflow, self.jobs, self.root, self.executor, self.journal, wanted)
        self.live = {job_id: submission for job_id, submission in submissions(self.root).items() if job_id in queued}
        try:
            for script in found:
                for batch in self.batches(script, wanted):
                    self.submit_batch(batch)
        except UserError:
            if self.new:
                commands.call(["scancel", *self.new])
            raise
        self.say(wanted, queued)

    def queued(self, states: dict[str, SlurmState]) -> set[str]:
        """Jobs in Slurm's queue. Raises UserError if one of them was submitted with other inputs."""
        known = submissions(self.root)
        found = set()
        for job in self.jobs:
            state = states.get(job.id)
            if state is None or (job_folder(self.root, job.id).status() is not None and not state.is_live):
                continue
            if state.state == "PENDING" and not state.is_live:
                commands.call(["scancel", state.id])  # it cannot start, and is submitted again
            if state.is_live:
                if known[job.id].keys[job.id] != job.key:
                    raise UserError(
                        f"{job.id}: is in the queue as {state.id} with other inputs: "
                        f"`spdf cancel {self.root} {job.id}`, then run this again"
                    )
                found.add(job.id)
        return found

    def must_rest(self, job_id: str, queued: set[str]) -> bool:
        """Whether a job is not submitted: it is in the queue, or a job that needs it is."""
        if job_id in queued:
            return True
        users = [job.id for job in self.jobs if job_id in job.needs]
        return any(self.must_rest(user, queued) for user in users)

    def batches(self, script: Script, wanted: set[str]) -> list[Batch]:
        """The wanted jobs of a script, grouped by dependencies."""
        groups: dict[tuple[str, ...], list[Job]] = {}
        for job in script.jobs:
            if job.id in wanted:
                groups.setdefault(self.dependencies(script, job), []).append(job)
        return [Batch(script, members, dependencies) for dependencies, members in groups.items()]

    def dependencies(self, script: Script, job: Job) -> tuple[str, ...]:
        """The dependencies of a job: submissions of the needed jobs that are not done."""
        index = script.index(job)
        found = []
        for need in job.needs:
            if need not in self.live or job_folder(self.root, need).status() == DONE:
                continue
            parent = self.live[need]
            if job.fan_in:
                # A failed cell must not prevent the choice: wait for the end only. The job reads the manifests.
                found.append(f"afterany:{parent.slurm_id(need)}")
            elif index is not None and parent.tasks[need] == index:
                found.append(f"aftercorr:{parent.id}")
            else:
                found.append(f"afterok:{parent.slurm_id(need)}")
        return tuple(dict.fromkeys(found))

    def submit_batch(self, batch: Batch) -> None:
        """Submit one batch. The journal has an `intent` line before and a `submitted` line after."""
        indices = {job.id: batch.script.index(job) for job in batch.jobs}
        comment = f"spdf {self.folder_id()} {len(events(self.root, 'intent')) + 1}"
        keys = {job.id: job.key for job in batch.jobs}
        content = {"comment": comment, "tasks": indices, "keys": keys}
        options = [f"--comment={comment}"]
        if batch.dependencies:
            options.append(f"--dependency={','.join(batch.dependencies)}")
        if batch.script.is_array:
            throttle = batch.jobs[0].resources.throttle
            tasks = ",".join(str(index) for index in indices.values())
            options.append(f"--array={tasks}" + (f"%{throttle}" if throttle else ""))
        self.journal.write("intent", script=str(batch.script.path), options=options, **content)
        try:
            slurm_id = commands.submit(batch.script.path, options, self.journal.descriptor)
        except UserError:
            self.journal.write("refused", comment=comment)
            raise
        self.journal.write("submitted", id=slurm_id, **content)
        self.new.append(slurm_id)
        submission = Submission(slurm_id, indices, keys)
        self.live |= dict.fromkeys(indices, submission)
        after = f"  after {' '.join(batch.dependencies)}" if batch.dependencies else ""
        cells = f"  {len(batch.jobs)} cells" if batch.script.is_array else ""
        print(f"submitted {slurm_id:>8}  {batch.script.name}{cells}{after}")

    def folder_id(self) -> str:
        """A unique name of this folder, for the comments of its jobs."""
        lines = events(self.root, "folder")
        if not lines:
            self.journal.write("folder", id=secrets.token_hex(6))
            lines = events(self.root, "folder")
        return str(lines[0]["id"])

    def say(self, wanted: set[str], queued: set[str]) -> None:
        """Print one line with the number of jobs."""
        done = sum(job_folder(self.root, job.id).is_done(job.key) for job in self.jobs)
        print(
            f"{counted(len(wanted), 'job')} submitted, {len(queued)} in the queue already, {done} done and unchanged; "
            f"scripts and logs in {self.root / FOLDER}"
        )


def wait_for_end(jobs: list[Job], root: Path) -> int:
    """Print the table when it changes, until every job has ended. Returns 1 unless all wanted jobs are done."""
    shown = ""
    while True:
        states = gather(root)
        text = table(states)
        if text != shown:
            print(text, end="\n\n", flush=True)
        shown = text
        if all(state.state in (DONE, FAILED, CANCELLED, LOST) for state in states):
            return 1 if wanted_jobs(jobs, root) else 0
        try:
            time.sleep(WAIT_SECONDS)
        except KeyboardInterrupt:
            print("the jobs continue without this command", file=sys.stderr)
            return 0
