"""``--on slurm``: writes batch scripts to DIR/slurm and submits them with dependencies."""

from __future__ import annotations

import argparse
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from spdf_dist.base.signals import ReceivedSignals
from spdf_launcher import process
from spdf_launcher.executors.base import Executor, JobState
from spdf_launcher.journal import Journal
from spdf_launcher.kinds import KINDS
from spdf_launcher.plan import Job
from spdf_launcher.requeue import is_preempted, requeue_self, slurm_job
from spdf_launcher.slurm import commands
from spdf_launcher.slurm.script import scripts, srun_program
from spdf_launcher.slurm.state import SlurmState, recover, slurm_states
from spdf_launcher.slurm.submit import check_scripts, run_on_slurm, say_what
from spdf_launcher.workflow import Workflow


class Slurm(Executor):
    """A Slurm cluster that this machine can submit to."""

    name = "slurm"
    help = "writes batch scripts into DIR/slurm, submits the whole chain and returns"
    starts_ranks = True
    options = ("--wait",)

    def __init__(self, options: argparse.Namespace | None = None) -> None:
        self.wait = options is not None and bool(options.wait)

    @classmethod
    def add_options(cls, parser: argparse._ArgumentGroup) -> None:
        parser.add_argument("--wait", action="store_true", help="wait until every job has ended")

    def check(self, jobs: Sequence[Job], root: Path) -> None:
        scripts(list(jobs), root)

    def program(self, job: Job, workflow: Workflow, root: Path) -> list[str]:
        return srun_program(job, workflow.cluster)

    def reports_code(self, job: Job) -> bool:
        return KINDS[job.kind].config is not None

    def dry_check(self, workflow: Workflow, jobs: Sequence[Job], root: Path) -> str:
        return check_scripts(workflow, list(jobs), root)

    def describe(self, workflow: Workflow, jobs: Sequence[Job], wanted: set[str], root: Path) -> None:
        say_what(workflow, list(jobs), root)

    def run(self, workflow: Workflow, jobs: list[Job], root: Path) -> int:
        return run_on_slurm(self, workflow, jobs, root, wait=self.wait)

    def holds_job(self) -> bool:
        return slurm_job() is not None

    def is_preempted(self) -> bool:
        return is_preempted()

    def requeue(self) -> None:
        requeue_self()

    def goes_on(self, signals: ReceivedSignals) -> bool:
        return process.goes_on(signals)

    def forward(self, process: subprocess.Popen[bytes], number: int) -> None:
        """Forward SIGUSR1 only; srun passes it to the ranks. Slurm itself sends SIGTERM to the ranks."""
        if number == signal.SIGUSR1:
            process.send_signal(number)

    def states(self, root: Path) -> Mapping[str, SlurmState]:
        return slurm_states(root)

    @contextmanager
    def cancelling(self, root: Path) -> Iterator[Mapping[str, SlurmState]]:
        commands.require()
        with Journal(root) as journal:
            for line in recover(root):
                journal.write("submitted", recovered=True, **line)
            yield slurm_states(root)

    def cancel(self, job: Job, state: JobState) -> str:
        assert isinstance(state, SlurmState)
        saves = KINDS[job.kind].continues and state.state == "RUNNING"
        words = ["scancel", "--batch", "--signal=USR1", state.id] if saves else ["scancel", state.id]
        done = commands.call(words)
        if done.returncode:
            return f"{state.id}: {commands.complaint(done)}"
        return f"{state.id} told to save and stop" if saves else f"{state.id} taken out of the queue"
