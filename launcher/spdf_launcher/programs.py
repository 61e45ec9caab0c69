"""What stands before the words of ``spdf`` in a command: how its ranks are started."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from spdf_dist.config.errors import UserError
from spdf_launcher.kinds import KINDS
from spdf_launcher.plan import Job

SPDF = (sys.executable, "-m", "spdf_dist")
RANK_MODULE = "spdf_launcher.rank"


def local_program(job: Job) -> list[str]:
    """The plain command: training spawns its own ranks."""
    return list(SPDF)


def deepspeed_program(job: Job, hostfile: Path | None, flags: Sequence[str]) -> list[str]:
    """The deepspeed launcher for training, the plain command for anything else."""
    if KINDS[job.kind].config is None:
        return list(SPDF)
    executable = Path(sys.executable).with_name("deepspeed")
    if not executable.is_file():
        raise UserError(f"no deepspeed launcher beside {sys.executable}: install deepspeed there")
    program = [str(executable)]
    if hostfile is not None:
        program += ["--hostfile", str(hostfile), "--num_nodes", str(job.resources.nodes)]
        program += ["--num_gpus", str(job.resources.ranks_per_node)]
    elif job.resources.nodes > 1:
        raise UserError(f"jobs.{job.name}: {job.resources.nodes} nodes need --hostfile FILE")
    else:
        # An absent hostfile is no error for deepspeed; naming none would make it read /job/hostfile.
        program += ["--hostfile", "", "--num_gpus", str(job.resources.ranks_per_node)]
    return [*program, *flags, "--module", RANK_MODULE]
