"""The processes that share one ``spdf data pack``: one alone, MPI ranks, or the tasks of a Slurm step.

All they need of each other is :meth:`Ranks.allgather`. Under srun without PMIx every task believes that it is alone
in MPI; such tasks meet through files in the output's folder instead, and say so.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from spdf_dist.base.atomic_files import write_text
from spdf_dist.config.errors import UserError

POLL_SECONDS = 0.2


def is_rank_zero() -> bool:
    """Whether this process speaks for the job: rank 0 of whatever launcher started it, or the only process."""
    env = os.environ
    rank = env.get("RANK") or env.get("OMPI_COMM_WORLD_RANK")
    if rank is None and "SLURM_STEP_ID" in env:
        rank = env.get("SLURM_PROCID")
    return rank in (None, "", "0")


class Ranks(ABC):
    """``size`` processes, this one being number ``rank``."""

    rank: int
    size: int
    kind: str
    """How they meet: ``single``, ``mpi`` or ``files``."""

    @abstractmethod
    def allgather(self, value: Any) -> list[Any]:
        """Every rank's ``value`` (JSON types), by rank; all ranks call it the same number of times."""

    @abstractmethod
    def close(self) -> None:
        """Leave, after the last meeting."""


class SingleRank(Ranks):
    """One process alone."""

    rank, size, kind = 0, 1, "single"

    def allgather(self, value: Any) -> list[Any]:
        return [value]

    def close(self) -> None:
        pass


class MpiRanks(Ranks):
    """The ranks of MPI's world."""

    kind = "mpi"

    def __init__(self, world: Any) -> None:
        self._world = world
        self.rank, self.size = world.Get_rank(), world.Get_size()

    def allgather(self, value: Any) -> list[Any]:
        return self._world.allgather(value)

    def close(self) -> None:
        pass  # mpi4py leaves when the process ends


class FileRanks(Ranks):
    """Tasks that see one file system; a meeting is a folder in which each leaves a file."""

    kind = "files"

    def __init__(self, rank: int, size: int, folder: Path) -> None:
        self.rank, self.size = rank, size
        self._folder = folder
        self._meetings = 0

    def allgather(self, value: Any) -> list[Any]:
        place = self._folder / str(self._meetings)
        self._meetings += 1
        place.mkdir(parents=True, exist_ok=True)
        files = [place / f"{rank}.json" for rank in range(self.size)]
        write_text(files[self.rank], json.dumps(value))
        while not all(file.exists() for file in files):
            time.sleep(POLL_SECONDS)
        return [json.loads(file.read_text()) for file in files]

    def close(self) -> None:
        left = [self._folder / f"left-{rank}" for rank in range(self.size)]
        left[self.rank].touch()
        if self.rank == 0:
            while not all(file.exists() for file in left):
                time.sleep(POLL_SECONDS)
            shutil.rmtree(self._folder.parent)


def find_ranks(out: Path) -> Ranks:
    """The ranks of this job, by its environment; ``out`` is the folder that they are to write.

    Raises:
        UserError: started by a launcher that is neither mpirun nor srun.
    """
    env = os.environ
    if int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        from mpi4py import MPI

        if MPI.COMM_WORLD.Get_size() == 1:
            raise UserError("mpi4py does not see mpirun's ranks: start with the mpirun of the MPI it was built for")
        return MpiRanks(MPI.COMM_WORLD)
    tasks = int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or 1) if "SLURM_STEP_ID" in env else 1
    if tasks > 1:
        from mpi4py import MPI

        if MPI.COMM_WORLD.Get_size() > 1:
            return MpiRanks(MPI.COMM_WORLD)
        rank = int(env["SLURM_PROCID"])
        if rank == 0:
            print(
                f"MPI sees one rank a task: this step's {tasks} tasks split the files by SLURM_PROCID", file=sys.stderr
            )
        step = f"{env.get('SLURM_JOB_ID', '0')}.{env['SLURM_STEP_ID']}.{env.get('SLURM_RESTART_COUNT', '0')}"
        return FileRanks(rank, tasks, out.with_name(f".{out.name}.ranks") / step)
    if int(env.get("WORLD_SIZE", "1")) > 1 and "RANK" in env:
        raise UserError("spdf data pack splits its work under mpirun or srun, not under torchrun or deepspeed")
    return SingleRank()
