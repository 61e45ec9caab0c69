"""Collective operations among the ranks of a job: one interface over several transports.

``allgather`` is the only operation that an implementation must have. Values are of JSON types. All ranks call the same
operations in the same order. ``spdf_dist.parallel.groups.Groups`` implements it with torch.distributed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spdf_dist.base.atomic_files import write_text
from spdf_dist.base.extras import require_extra
from spdf_dist.base.rank_variables import discover
from spdf_dist.config.errors import EXIT_BAD_INPUT, SpdfError, UserError, exit_code_of

POLL_SECONDS = 0.2


class Collective(ABC):
    """A group of ``world_size`` processes, of which this one is number ``rank``."""

    rank: int
    world_size: int

    @abstractmethod
    def allgather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank."""

    def gather(self, value: Any) -> list[Any] | None:
        """Every rank's value, by rank, on rank 0; None on other ranks."""
        values = self.allgather(value)
        return values if self.rank == 0 else None

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        return self.allgather(value if self.rank == 0 else None)[0]

    def barrier(self) -> None:
        """Wait for every rank."""
        self.allgather(None)

    def all_reduce_max(self, value: float) -> float:
        """The maximum over the ranks. Ranks use it to agree on a stop or an error."""
        return float(max(self.allgather(value)))

    def on_rank_zero(self, action: Callable[[], Any]) -> Any:
        """Call ``action`` on rank 0 and return its result on every rank. If it raises SpdfError, every rank does."""
        answer = message = None
        code = 0
        if self.rank == 0:
            try:
                answer = action()
            except SpdfError as error:
                message, code = str(error), exit_code_of(error)
        answer, message, code = self.broadcast((answer, message, code))
        if message is not None:
            raise UserError(message) if code == EXIT_BAD_INPUT else SpdfError(message)
        return answer

    def close(self) -> None:  # noqa: B027
        """Release resources after the last operation."""


class SingleProcess(Collective):
    """A single process."""

    rank, world_size = 0, 1

    def allgather(self, value: Any) -> list[Any]:
        return [value]


class MpiProcesses(Collective):
    """The ranks of MPI's world communicator."""

    def __init__(self, world: Any) -> None:
        self._world = world
        self.rank, self.world_size = world.Get_rank(), world.Get_size()

    def allgather(self, value: Any) -> list[Any]:
        return list(self._world.allgather(value))


class FileProcesses(Collective):
    """Tasks with a shared file system. Each operation has a folder, to which each task writes one file.

    The names of the folders follow from the job, so that the tasks agree on them. Therefore every folder must be this
    user's own and closed to others (mode 700): nobody else can put a file or a link there. The files have unguessable
    names until they are complete.

    Raises UserError if a folder exists that is not this user's own.
    """

    def __init__(self, rank: int, world_size: int, folder: Path) -> None:
        self.rank, self.world_size = rank, world_size
        self._folder = folder
        self._operations = 0
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        make_own_folder(folder.parent)
        make_own_folder(folder)

    def allgather(self, value: Any) -> list[Any]:
        place = self._folder / str(self._operations)
        self._operations += 1
        make_own_folder(place)
        files = [place / f"{rank}.json" for rank in range(self.world_size)]
        write_text(files[self.rank], json.dumps(value))
        while not all(file.exists() for file in files):
            time.sleep(POLL_SECONDS)
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def close(self) -> None:
        left = [self._folder / f"left-{rank}" for rank in range(self.world_size)]
        left[self.rank].touch()
        if self.rank == 0:
            while not all(file.exists() for file in left):
                time.sleep(POLL_SECONDS)
            shutil.rmtree(self._folder.parent)


def make_own_folder(path: Path) -> None:
    """Create a folder that only this user can enter, unless it exists.

    Raises UserError if ``path`` is a link, is no folder, belongs to another user, or is open to others.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise UserError(f"{path} is a link, or others can write to it: remove it")


def find_processes(out: Path) -> Collective:
    """The processes of a job that writes the folder ``out`` without torch: under mpirun, under srun, or a single one.

    Under srun without PMIx, MPI shows each task a world of one rank. Such tasks communicate through files beside
    ``out``.

    Raises:
        UserError: the launcher is neither mpirun nor srun, mpi4py is missing, or it does not see mpirun's ranks.
    """
    ranks = discover()
    if ranks is None or ranks.world_size <= 1:
        return SingleProcess()
    if ranks.source not in ("MPI", "Slurm"):
        raise UserError(
            "spdf data pack splits its work under mpirun or srun, not under torchrun or deepspeed; unset RANK and "
            "WORLD_SIZE to pack in one process"
        )
    require_extra("mpi", "packing under mpirun or srun")
    from mpi4py import MPI

    if MPI.COMM_WORLD.Get_size() > 1:
        return MpiProcesses(MPI.COMM_WORLD)
    if ranks.source == "MPI":
        raise UserError("mpi4py does not see mpirun's ranks: start with the mpirun of the MPI it was built for")
    if ranks.rank == 0:
        print(
            f"MPI sees one rank per task: this step's {ranks.world_size} tasks split the files by SLURM_PROCID",
            file=sys.stderr,
        )
    env = os.environ
    step = f"{env.get('SLURM_JOB_ID', '0')}.{env['SLURM_STEP_ID']}.{env.get('SLURM_RESTART_COUNT', '0')}"
    return FileProcesses(ranks.rank, ranks.world_size, out.with_name(f".{out.name}.ranks") / step)
