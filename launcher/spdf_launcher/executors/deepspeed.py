"""``--on deepspeed``: training through the deepspeed launcher, on this machine or on the hosts of a hostfile."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from spdf_dist.config.errors import UserError
from spdf_dist.workflow_folder import job_folder
from spdf_launcher import programs
from spdf_launcher.executors.base import Executor
from spdf_launcher.hostfile import check_room, read_hostfile
from spdf_launcher.kinds import KINDS
from spdf_launcher.plan import Job
from spdf_launcher.process import ranks_below
from spdf_launcher.rank import EXIT_OPTION, RANK_MODULE
from spdf_launcher.workflow import Workflow


class DeepSpeed(Executor):
    """The deepspeed launcher, started from this machine."""

    name = "deepspeed"
    help = "training through the deepspeed launcher, on one node or on those of --hostfile"
    starts_ranks = True
    options = ("--hostfile", "--launcher-flag")

    def __init__(self, options: argparse.Namespace | None = None) -> None:
        hostfile = options.hostfile if options is not None else None
        if hostfile is not None and not hostfile.is_file():
            raise UserError(f"--hostfile {hostfile}: no such file")
        self.hostfile: Path | None = hostfile.absolute() if hostfile is not None else None
        self.flags: list[str] = list(options.launcher_flag) if options is not None else []

    @classmethod
    def add_options(cls, parser: argparse._ArgumentGroup) -> None:
        parser.add_argument("--hostfile", type=Path, help="a file of `HOST slots=N` lines")
        parser.add_argument(
            "--launcher-flag",
            action="append",
            default=[],
            metavar="FLAG",
            help="a flag of the launcher, such as --launcher-flag=--master_port=29501; may be repeated",
        )

    def check(self, jobs: Sequence[Job], root: Path) -> None:
        if self.hostfile is not None:
            hosts = read_hostfile(self.hostfile)
            for job in jobs:
                if self.reports_code(job):
                    check_room(self.hostfile, hosts, job)

    def reports_code(self, job: Job) -> bool:
        return KINDS[job.kind].config is not None

    def program(self, job: Job, workflow: Workflow, root: Path) -> list[str]:
        """The deepspeed launcher for training; the plain command for other jobs.

        Raises:
            UserError: deepspeed is not installed beside this Python, the path of ``root`` needs quotes, or a job of
                several nodes has no hostfile.
        """
        if not self.reports_code(job):
            return list(programs.SPDF)
        executable = Path(sys.executable).with_name("deepspeed")
        if not executable.is_file():
            raise UserError(f"no deepspeed launcher beside {sys.executable}: install deepspeed there")
        if not programs.SAFE_PATH.fullmatch(str(root)):
            raise UserError(f"--dir {root}: deepspeed takes no spaces or quotes in paths: choose another folder")
        if self.hostfile is None and job.resources.nodes > 1:
            raise UserError(f"jobs.{job.name}: {job.resources.nodes} nodes need --hostfile FILE")
        # By default deepspeed reads /job/hostfile. The name of a missing file restricts it to this machine.
        program = [str(executable), "--hostfile", str(self.hostfile or root / "no_hostfile")]
        program += ["--num_nodes", str(job.resources.nodes)] if self.hostfile is not None else []
        program += ["--num_gpus", str(job.resources.ranks_per_node), "--no_local_rank", *self.flags]
        return [*program, "--module", RANK_MODULE, f"{EXIT_OPTION}{job_folder(root, job.id).exit_code}"]

    def stop(self, command: int) -> None:
        """Send SIGTERM to the ranks on this machine, not to their launcher, which would kill them after 30 seconds.

        The launcher stops the ranks on other hosts.
        """
        for pid in ranks_below(command) or [command]:
            super().stop(pid)
