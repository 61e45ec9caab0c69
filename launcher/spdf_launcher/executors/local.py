"""``--on local``: one job after the other on this machine. Training starts its own ranks."""

from __future__ import annotations

from pathlib import Path

from spdf_launcher import programs
from spdf_launcher.executors.base import Executor
from spdf_launcher.plan import Job
from spdf_launcher.workflow import Workflow


class Local(Executor):
    """This machine."""

    name = "local"
    help = "here, one job after the other; Ctrl-C saves and stops, running again goes on"

    def program(self, job: Job, workflow: Workflow, root: Path) -> list[str]:
        return list(programs.SPDF)
