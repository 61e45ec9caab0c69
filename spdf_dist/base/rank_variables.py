"""Which rank this process is, by the variables of its launcher. The only module that reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from spdf_dist.config.errors import UserError

RENDEZVOUS = "SPDF_RENDEZVOUS_FILE"
"""Set for ranks that this program started: the file through which they meet."""


@dataclass(frozen=True)
class Ranks:
    """This process among its peers, and who said so."""

    rank: int
    world_size: int
    local_rank: int
    source: str
    """`the launcher`, `spdf`, `MPI` or `Slurm`."""
    rendezvous_file: str | None = None


ALONE = Ranks(0, 1, 0, "this process alone")


def discover(env: Mapping[str, str] = os.environ) -> Ranks | None:
    """The rank that a launcher gave this process; None when no launcher started it.

    torchrun, deepspeed and our own spawning set RANK and WORLD_SIZE; mpirun OMPI_COMM_WORLD_*; a Slurm step
    SLURM_STEP_ID and SLURM_PROCID (a batch shell has no step: there the program spawns its own ranks).

    Raises UserError for variables that are no numbers.
    """
    try:
        if "RANK" in env and "WORLD_SIZE" in env:
            rank, size = int(env["RANK"]), int(env["WORLD_SIZE"])
            source = "the launcher" if RENDEZVOUS not in env else "spdf"
            return Ranks(rank, size, int(env.get("LOCAL_RANK", rank)), source, env.get(RENDEZVOUS))
        if "OMPI_COMM_WORLD_RANK" in env:
            local = int(env.get("OMPI_COMM_WORLD_LOCAL_RANK", "0"))
            return Ranks(int(env["OMPI_COMM_WORLD_RANK"]), int(env["OMPI_COMM_WORLD_SIZE"]), local, "MPI")
        if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
            size = int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or 1)
            return Ranks(int(env["SLURM_PROCID"]), size, int(env.get("SLURM_LOCALID", "0")), "Slurm")
    except (ValueError, KeyError) as error:
        raise UserError(f"the launcher's rank variables are not numbers: {error}") from None
    return None


def is_rank_zero() -> bool:
    """Whether this process speaks for the job: rank 0 of whatever launcher started it, or the only process."""
    try:
        return (discover() or ALONE).rank == 0
    except UserError:
        return True
