"""Runs the jobs of a workflow on this machine, some at a time, in processes that outlive a killed launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from spdf_dist.base.cpu import cores
from spdf_dist.base.file_locks import is_locked
from spdf_dist.base.signals import STOP_SIGNALS, ReceivedSignals
from spdf_dist.config.errors import EXIT_STOPPED
from spdf_dist.workflow_folder import CANCELLED, DONE, job_folder, read_json
from spdf_launcher.display import Display
from spdf_launcher.journal import Journal
from spdf_launcher.plan import Job
from spdf_launcher.prepare import wanted_jobs
from spdf_launcher.progress import read_progress

POLL_SECONDS = 0.25


def results_first(jobs: list[Job]) -> list[Job]:
    """The jobs depth first: each final job right after the jobs it needs. An interrupted study has complete results."""
    by_id = {job.id: job for job in jobs}
    needed = {need for job in jobs for need in job.needs}
    ordered: dict[str, Job] = {}

    def add(job: Job) -> None:
        if job.id not in ordered:
            for need in job.needs:
                add(by_id[need])
            ordered[job.id] = job

    for job in jobs:
        if job.id not in needed:
            add(job)
    return list(ordered.values())


@dataclass
class Running:
    """A job whose runner was started here, or by an earlier launcher (``process`` is None)."""

    job: Job
    number: int
    process: subprocess.Popen[bytes] | None
    passed: int = 0
    """Number of signals that were passed on."""


class LocalRun:
    """One pass over the jobs of a workflow, ``at_once`` of them at a time."""

    def __init__(
        self, root: Path, jobs: list[Job], wanted: set[str], journal: Journal, display: Display, at_once: int = 1
    ) -> None:
        self.root, self.jobs, self.wanted = root, jobs, wanted
        self.journal, self.display, self.at_once = journal, display, at_once
        self.signals = ReceivedSignals(STOP_SIGNALS)
        self.running: list[Running] = []
        self.stopped = False

    def run(self) -> int:
        """Run the wanted jobs. Returns 0 if all are done, 75 if a signal stopped them, else 1."""
        waiting = list(enumerate(results_first(self.jobs), 1))
        with self.signals:
            while self.running or (waiting and not self.stops()):
                if not self.stops() and self.start_next(waiting):
                    continue
                for each in list(self.running):
                    self.look_at(each)
                self.note()
                time.sleep(POLL_SECONDS)
        if self.stops():
            return EXIT_STOPPED
        return 1 if wanted_jobs(self.jobs, self.root) else 0

    def stops(self) -> bool:
        """Whether no further job may start."""
        return self.stopped or bool(self.signals.got)

    def start_next(self, waiting: list[tuple[int, Job]]) -> bool:
        """Start the first waiting job that can start, or report one that need not run; False if there is none.

        The job is removed from ``waiting``.
        """
        unfinished = {job.id for _, job in waiting} | {each.job.id for each in self.running}
        for place, (number, job) in enumerate(waiting):
            folder = job_folder(self.root, job.id)
            if job.id not in self.wanted:
                status = folder.status()
                self.display.job(number, len(self.jobs), job.id)
                self.display.end(job.id, "skipped", "unchanged" if status == DONE else "no longer needed")
            elif unfinished & set(job.needs):
                continue
            elif len(self.running) == self.at_once:
                return False
            else:
                self.display.job(number, len(self.jobs), job.id)
                self.start(number, job)
            del waiting[place]
            return True
        return False

    def start(self, number: int, job: Job) -> None:
        """Start a job's runner, unless the one of an earlier launcher runs."""
        folder = job_folder(self.root, job.id)
        if folder.status() == CANCELLED:
            self.end(Running(job, number, None), 1)
            return
        self.running.append(Running(job, number, None if is_locked(folder.lock) else self.runner(job)))

    def runner(self, job: Job) -> subprocess.Popen[bytes]:
        """Start a job's runner."""
        self.journal.write("start", job=job.id)
        environment = dict(os.environ)
        if self.at_once > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // self.at_once)))
        with (job_folder(self.root, job.id).path / "runner.log").open("ab") as errors:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "spdf_launcher.job", str(self.root), job.id],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )

    def look_at(self, each: Running) -> None:
        """Pass signals on to a running job, and report its end."""
        if each.process is None:
            if self.signals.got:
                self.end(each, EXIT_STOPPED)
            elif not is_locked(job_folder(self.root, each.job.id).lock):
                each.process = self.runner(each.job)  # it finds the job done, or continues it
            return
        while each.passed < len(self.signals.got):
            each.process.send_signal(signal.SIGTERM)
            each.passed += 1
        code = each.process.poll()
        if code is not None:
            self.end(each, code)

    def end(self, each: Running, code: int) -> None:
        """Report the end of a job."""
        if each in self.running:
            self.running.remove(each)
        job = each.job
        manifest = read_json(job_folder(self.root, job.id).manifest) or {}
        if self.signals.got or (code == EXIT_STOPPED and not manifest):
            self.stopped = True
            self.display.end(job.id, "stopped", "run the same command again to continue")
            return
        status = manifest.get("status", "failed")
        self.journal.write("end", job=job.id, status=status, exit_code=code)
        if status == DONE:
            tries = f"{manifest['attempts']} attempts" if manifest["attempts"] > 1 else ""
            self.display.end(job.id, "done", ", ".join(part for part in (tries, manifest["reason"]) if part))
        else:
            left = f"ended with exit code {code} and no manifest: see runner.log and job.log in its folder"
            self.display.end(job.id, status, str(manifest.get("reason") or left))

    def note(self) -> None:
        """Show the state of the running jobs."""
        for each in self.running:
            state = "stopping" if self.signals.got else "running"
            if each.process is None:
                state = "running since an earlier launcher"
            progress = read_progress(job_folder(self.root, each.job.id).run_dir, each.job.steps)
            self.display.note(each.job.id, state, progress)
