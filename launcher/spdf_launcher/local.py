"""Runs the jobs of a workflow one after the other on this machine, in processes that outlive a killed launcher."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from spdf_dist.base.file_locks import is_locked
from spdf_dist.base.signals import ReceivedSignals
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


class LocalRun:
    """One pass over the jobs of a workflow."""

    def __init__(self, root: Path, jobs: list[Job], wanted: set[str], journal: Journal, display: Display) -> None:
        self.root, self.jobs, self.wanted = root, jobs, wanted
        self.journal, self.display = journal, display
        self.signals = ReceivedSignals((signal.SIGTERM, signal.SIGINT))

    def run(self) -> int:
        """Run the wanted jobs. Returns 0 if all are done, 75 if a signal stopped them, else 1."""
        with self.signals:
            for number, job in enumerate(results_first(self.jobs), 1):
                self.display.job(number, len(self.jobs), job.id)
                if job.id not in self.wanted:
                    status = job_folder(self.root, job.id).status()
                    self.display.end("skipped", "unchanged" if status == DONE else "not needed any more")
                    continue
                code = self.run_job(job)
                manifest = read_json(job_folder(self.root, job.id).manifest) or {}
                if self.signals.got or (code == EXIT_STOPPED and not manifest):
                    self.display.end("stopped", "run the same command again to go on")
                    return EXIT_STOPPED
                status = manifest.get("status", "failed")
                self.journal.write("end", job=job.id, status=status, exit_code=code)
                if status == DONE:
                    tries = f"{manifest['attempts']} attempts" if manifest["attempts"] > 1 else ""
                    self.display.end("done", ", ".join(part for part in (tries, manifest["reason"]) if part))
                else:
                    left = f"ended with exit code {code} and no manifest: see runner.log and job.log in its folder"
                    self.display.end(status, str(manifest.get("reason") or left))
        return 1 if wanted_jobs(self.jobs, self.root) else 0

    def run_job(self, job: Job) -> int:
        """Start a job's runner, or first wait for the one of an earlier launcher; return the exit code."""
        folder = job_folder(self.root, job.id)
        if folder.status() == CANCELLED:
            return 1
        while is_locked(folder.lock) and not self.signals.got:
            self.display.note("running since an earlier launcher", read_progress(folder.run_dir, job.steps))
            time.sleep(POLL_SECONDS)
        if self.signals.got:
            return EXIT_STOPPED
        self.journal.write("start", job=job.id)
        errors = (folder.path / "runner.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "spdf_launcher.job", str(self.root), job.id],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
        )
        errors.close()
        passed = 0
        while process.poll() is None:
            while passed < len(self.signals.got):
                process.send_signal(signal.SIGTERM)
                passed += 1
            self.display.note("stopping" if self.signals.got else "running", read_progress(folder.run_dir, job.steps))
            time.sleep(POLL_SECONDS)
        return process.returncode
