"""Batch scripts: files that a user can read and submit again by hand."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spdf_dist.config.errors import UserError
from spdf_launcher.kinds import KINDS
from spdf_launcher.plan import Job
from spdf_launcher.programs import SAFE_PATH
from spdf_launcher.rank import RANK_MODULE
from spdf_launcher.workflow import Cluster

FOLDER = "slurm"


@dataclass(frozen=True)
class Script:
    """One batch script: one job, or the cells of a job as an array."""

    name: str
    path: Path
    jobs: tuple[Job, ...]

    @property
    def is_array(self) -> bool:
        """Whether its jobs are the tasks of an array; a task's index is the index of its cell."""
        return bool(self.jobs[0].cell)

    def index(self, job: Job) -> int | None:
        """A job's task index; None if the script is one job."""
        return [other.id for other in self.jobs].index(job.id) if self.is_array else None


def scripts(jobs: list[Job], root: Path) -> list[Script]:
    """The scripts of a workflow: one per job and variant, with all its cells."""
    if not SAFE_PATH.fullmatch(str(root)):
        raise UserError(f"--dir {root}: batch scripts take no spaces, quotes or % in paths: choose another folder")
    groups: dict[tuple[str, str | None], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.name, job.variant), []).append(job)
    found = []
    for (name, variant), members in groups.items():
        label = f"{name}.{variant}" if variant else name
        found.append(Script(label, root / FOLDER / f"{label}.sbatch", tuple(members)))
    return found


def srun_program(job: Job, cluster: Cluster) -> list[str]:
    """The words before the words of ``spdf``: srun starts one rank per task.

    A one-process job without checkpoints is the plain command, unless the cluster sets ``python`` or ``srun``: only
    srun can start a Python inside a container.
    """
    python = cluster.python or sys.executable
    kind, resources = KINDS[job.kind], job.resources
    alone = not kind.ranked or (kind.config is None and resources.ranks == 1)
    if alone and cluster.python is None and not cluster.srun:
        return [python, "-m", "spdf_dist"]
    program = ["srun", f"--nodes={resources.nodes}", f"--ntasks={resources.ranks}"]
    program += [f"--ntasks-per-node={resources.ranks_per_node}", f"--cpus-per-task={resources.cpus_per_rank}"]
    # A rank that fails ends all ranks. Ranks find each other through torch, so srun needs no MPI plug-in.
    program += ["--kill-on-bad-exit=1", "--mpi=none", *cluster.srun]
    return [*program, python, "-m", "spdf_dist" if alone else RANK_MODULE]


def render(script: Script, root: Path, cluster: Cluster) -> str:
    """The text of a script."""
    first = script.jobs[0]
    resources = first.resources
    pattern = "%A_%a" if script.is_array else "%j"
    options: list[str] = [
        f"--job-name={script.name}",
        f"--nodes={resources.nodes}",
        f"--ntasks-per-node={resources.ranks_per_node}",
        f"--cpus-per-task={resources.cpus_per_rank}",
    ]
    if script.is_array:
        throttle = f"%{resources.throttle}" if resources.throttle else ""
        options.append(f"--array=0-{len(script.jobs) - 1}{throttle}")
    optional = {
        "gpus-per-node": resources.gpus_per_node or None,
        "mem": resources.mem,
        "time": resources.time,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
    }
    for name, value in optional.items():
        if value is not None:
            if not re.fullmatch(r"[A-Za-z0-9_.,:&|\[\]*()-]+", str(value)):
                raise UserError(f"jobs.{first.name}: {name}: '{value}' cannot be used in a batch script")
            options.append(f"--{name}={value}")
    if resources.time is not None:
        options.append(f"--signal=B:USR1@{resources.signal_seconds}")
    options += [
        "--requeue",
        "--kill-on-invalid-dep=yes",
        "--open-mode=append",
        f"--chdir={root}",
        f"--output={root}/{FOLDER}/{script.name}-{pattern}.out",
        *cluster.sbatch,
    ]
    lines = ["#!/bin/bash", f"# Written by `spdf run`. By hand: sbatch {script.path}", "#"]
    lines += [f"#SBATCH {option}" for option in options]
    # A script in the current folder, such as tokenize.py, must not shadow a module of the same name.
    lines += ["", "export PYTHONSAFEPATH=1", *cluster.setup]
    lines += [f"export {name}={shlex.quote(str(value))}" for name, value in cluster.env.items()]
    if resources.ranks > 1:
        lines += [
            'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            "MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))",
            "export MASTER_ADDR MASTER_PORT",
        ]
    if script.is_array:
        lines += ["", "JOBS=("]
        lines += [f"  {shlex.quote(job.id)}" for job in script.jobs]
        lines += [")", 'JOB="${JOBS[$SLURM_ARRAY_TASK_ID]}"']
    else:
        lines += ["", f"JOB={shlex.quote(first.id)}"]
    lines += [
        "# Checks what the job needs, starts its ranks, and on the signal before the time limit lets them save and",
        "# puts the job back into the queue.",
        f'exec {shlex.quote(sys.executable)} -m spdf_launcher.job {shlex.quote(str(root))} "$JOB"',
        "",
    ]
    return "\n".join(lines)


def write_scripts(found: Sequence[Script], root: Path, folder: Path, cluster: Cluster) -> dict[str, Path]:
    """Write the scripts into ``folder``; return their paths by name."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for script in found:
        written[script.name] = folder / script.path.name
        written[script.name].write_text(render(script, root, cluster), encoding="utf-8")
    return written
