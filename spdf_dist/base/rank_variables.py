"""Reads the rank of this process from the environment variables of its launcher. No other module reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from spdf_dist.config.errors import UserError

RENDEZVOUS = "SPDF_RENDEZVOUS_FILE"
"""Variable of ranks that this program started: the rendezvous file of torch.distributed."""


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, and where it comes from."""

    rank: int
    world_size: int
    local_rank: int
    source: str
    """`the launcher`, `spdf`, `MPI`, `Slurm` or `this process alone`."""
    rendezvous_file: str | None = None


SINGLE_PROCESS = Ranks(0, 1, 0, "this process alone")


def discover(env: Mapping[str, str] = os.environ) -> Ranks | None:
    """The rank that a launcher gave this process; None if no launcher started it.

    torchrun, deepspeed and ``parallel.ranks`` set RANK and WORLD_SIZE, mpirun sets OMPI_COMM_WORLD_*, and a Slurm step
    sets SLURM_STEP_ID and SLURM_PROCID. A Slurm batch shell is not a step, so there the program spawns its own ranks.

    Raises UserError for variables that are not numbers, or not those of a rank.
    """
    found = read_ranks(env)
    if found is not None and not 0 <= found.rank < found.world_size:
        raise UserError(
            f"the variables of {found.source} name rank {found.rank} of {found.world_size}: ranks count from 0; unset "
            "them if another job left them in the environment"
        )
    return found


def read_ranks(env: Mapping[str, str]) -> Ranks | None:
    """As ``discover``, without a check of the numbers."""
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


def without_ranks(env: Mapping[str, str]) -> dict[str, str]:
    """The variables of ``env`` without those by which launchers make a process a rank, for a process that is none."""
    prefixes = ("OMPI_", "PMI_", "PMIX_", "TORCHELASTIC_", "SLURM_STEP_")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    left_out = (*names, "SLURM_PROCID", "SLURM_LOCALID", RENDEZVOUS)
    return {name: value for name, value in env.items() if name not in left_out and not name.startswith(prefixes)}


def is_rank_zero() -> bool:
    """Whether this process is rank 0 or the only process, and so prints the job's messages."""
    try:
        return (discover() or SINGLE_PROCESS).rank == 0
    except UserError:
        return True
