"""The protocol of an executor: how a workflow's jobs are started, stopped and watched.

The defaults run the jobs on this machine. An executor overrides the parts that differ. ``spdf run``
creates one from the command line (``options``), and each running job creates one by its name.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from spdf_dist.config.errors import SpdfError
from spdf_dist.workflow_folder import DONE, job_folder
from spdf_launcher import programs

if TYPE_CHECKING:
    from spdf_dist.base.signals import ReceivedSignals
    from spdf_launcher.plan import Job
    from spdf_launcher.workflow import Workflow


class JobState(Protocol):
    """A batch system's state of one job."""

    @property
    def id(self) -> str:
        """The batch system's id of the job."""

    @property
    def is_live(self) -> bool:
        """Whether the job may still run."""

    def in_words(self) -> tuple[str, str | None]:
        """A state of ``spdf status``, and its reason."""


class Executor:
    """A place where jobs run."""

    name: ClassVar[str]
    """The name in ``--on NAME``."""
    help: ClassVar[str]
    """One line for ``spdf run --help``."""
    starts_ranks: ClassVar[bool] = False
    """Whether it starts nodes x ranks_per_node ranks, which determine the config's data parallelism."""
    at_once: int = 1
    """Number of jobs that the default ``run`` runs at a time."""
    options: ClassVar[tuple[str, ...]] = ()
    """The options of ``spdf run`` that only this executor takes, such as ``--hostfile``."""

    def __init__(self, options: argparse.Namespace | None = None) -> None:
        """``options``: the command line of ``spdf run``; None inside a job. Raises UserError for a wrong option."""

    @classmethod
    def add_options(cls, parser: argparse._ArgumentGroup) -> None:
        """Add ``options`` to the parser of ``spdf run``."""

    # Used by `spdf run`.

    def check(self, jobs: Sequence[Job], root: Path) -> None:
        """Raise UserError for jobs that this executor cannot run."""

    def program(self, job: Job, workflow: Workflow, root: Path) -> list[str]:
        """The words before the words of ``spdf`` in a job's command."""
        return list(programs.SPDF)

    def reports_code(self, job: Job) -> bool:
        """Whether rank 0 writes the exit code to a file, because the launcher of the ranks loses it."""
        return False

    def dry_check(self, workflow: Workflow, jobs: Sequence[Job], root: Path) -> str:
        """Let the batch system check the jobs for ``--dry-run``; return a message. Raises UserError if it refuses."""
        return ""

    def describe(self, workflow: Workflow, jobs: Sequence[Job], wanted: set[str], root: Path) -> None:
        """Print the commands or scripts that would be started, for ``--dry-run --verbose``."""
        for job in jobs:
            if job.id in wanted and job.select is None:
                print(f"run   {job.id}\n        {' '.join([*self.program(job, workflow, root), *job.arguments])}")

    def run(self, workflow: Workflow, jobs: list[Job], root: Path) -> int:
        """Run the jobs that are not done. Returns 0 if all are done or submitted, 75 after a signal, else 1."""
        from spdf_launcher.display import Display
        from spdf_launcher.journal import Journal
        from spdf_launcher.local import LocalRun
        from spdf_launcher.prepare import prepare, require_folder, wanted_jobs

        for job in jobs:
            self.program(job, workflow, root)  # report a mistake before the folder is made
        require_folder(root)
        with Journal(root) as journal:
            wanted = wanted_jobs(jobs, root)
            prepare(workflow, jobs, root, self, journal, wanted)
            display = Display(sys.stdout, max(len(job.id) for job in jobs))
            code = LocalRun(root, jobs, wanted, journal, display, self.at_once).run()
        done = [job_folder(root, job.id).status() for job in jobs].count(DONE)
        print(f"{done} of {len(jobs)} jobs done, {len(jobs) - len(wanted)} of them before; folder {root}")
        return code

    # Used by a running job.

    def holds_job(self) -> bool:
        """Whether this process runs in a job of the batch system, which can be requeued."""
        return False

    def is_preempted(self) -> bool:
        """Whether the batch system preempts this job for another one."""
        return False

    def requeue(self) -> None:
        """Requeue this process's job. Does not return. Called only where ``holds_job`` is true."""
        raise SpdfError(f"the executor '{self.name}' has no batch system that requeues a job")

    def goes_on(self, signals: ReceivedSignals) -> bool:
        """Whether a stopped job of the batch system must be requeued."""
        return False

    def forward(self, process: subprocess.Popen[bytes], number: int) -> None:
        """Forward a signal that the job's runner received to the job's command."""
        self.stop(process.pid)

    def stop(self, command: int) -> None:
        """Signal a running command to save and stop; ``command`` is its process id."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(command, signal.SIGTERM)

    # Used by `spdf status` and `spdf cancel`.

    def states(self, root: Path) -> Mapping[str, JobState]:
        """The batch system's states of a folder's jobs, by job id. Raises UserError if it does not answer."""
        return {}

    @contextmanager
    def cancelling(self, root: Path) -> Iterator[Mapping[str, JobState]]:
        """``states`` during a cancellation; a batch system locks the folder against other launchers."""
        yield {}

    def cancel(self, job: Job, state: JobState) -> str:
        """Remove a job from the batch system; running training saves first. Returns a message.

        Called only for a job that ``states`` has.
        """
        raise SpdfError(f"the executor '{self.name}' has no batch system that cancels a job")
