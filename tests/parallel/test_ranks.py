"""The rank of the process, from the variables of every launcher."""

from __future__ import annotations

import pytest

from spdf_dist.base.rank_variables import discover
from spdf_dist.config.errors import UserError


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8, 1, "the launcher")),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
            (1, 2, 1, "MPI"),
        ),
        (
            {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "6", "SLURM_LOCALID": "2"},
            (5, 6, 2, "Slurm"),
        ),
        # A batch shell has SLURM_* variables but no step. There the program spawns its own ranks.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, None),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "SLURM_STEP_ID": "0", "SLURM_PROCID": "9"},
            (0, 2, 0, "the launcher"),
        ),
    ],
)
def test_discover(env, expected):
    found = discover(env)
    assert (found and (found.rank, found.world_size, found.local_rank, found.source)) == expected


def test_rank_variables_of_no_rank():
    for rank, size in (("5", "2"), ("-1", "2"), ("0", "0")):
        with pytest.raises(UserError, match=f"name rank {rank} of {size}"):
            discover({"RANK": rank, "WORLD_SIZE": size})


def test_rank_variables_that_are_no_numbers():
    with pytest.raises(UserError, match="not numbers"):
        discover({"RANK": "first", "WORLD_SIZE": "2"})
