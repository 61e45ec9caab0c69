"""What stands before the words of ``spdf`` in a command: how its ranks are started."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from spdf_dist.config.errors import UserError
from spdf_dist.workflow_folder import job_folder
from spdf_launcher.kinds import KINDS
from spdf_launcher.plan import Job
from spdf_launcher.rank import EXIT_OPTION, RANK_MODULE

SPDF = (sys.executable, "-m", "spdf_dist")
SAFE_PATH = re.compile(r"[A-Za-z0-9_./+=,:@-]+")
"""Paths that stay one word in a shell."""


def local_program(job: Job) -> list[str]:
    """The plain command: training spawns its own ranks."""
    return list(SPDF)


def deepspeed_program(job: Job, root: Path, hostfile: Path | None, flags: Sequence[str]) -> list[str]:
    """The deepspeed launcher for training, the plain command for anything else.

    Raises UserError without a deepspeed beside this Python, or for what that launcher cannot do.
    """
    if KINDS[job.kind].config is None:
        return list(SPDF)
    executable = Path(sys.executable).with_name("deepspeed")
    if not executable.is_file():
        raise UserError(f"no deepspeed launcher beside {sys.executable}: install deepspeed there")
    if not SAFE_PATH.fullmatch(str(root)):
        raise UserError(f"--dir {root}: deepspeed takes no spaces or quotes in paths: choose another folder")
    if hostfile is None and job.resources.nodes > 1:
        raise UserError(f"jobs.{job.name}: {job.resources.nodes} nodes need --hostfile FILE")
    # deepspeed reads /job/hostfile unless told otherwise; one that is not there means this machine alone.
    program = [str(executable), "--hostfile", str(hostfile or root / "no_hostfile")]
    program += ["--num_nodes", str(job.resources.nodes)] if hostfile is not None else []
    program += ["--num_gpus", str(job.resources.ranks_per_node), "--no_local_rank", *flags]
    return [*program, "--module", RANK_MODULE, f"{EXIT_OPTION}{job_folder(root, job.id).exit_code}"]
